"""A lowered graph whose delegates are calls by name: it goes into a file as data, and runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

from qcore.errors import QcoreError, RuntimeExecutionError
from qcore.lowering import private_copy
from qcore.model_file import read_exported
from qcore_executorch import import_executorch
from qcore_executorch.inspection import calls_delegate, without_edge

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["executing", "read_calls", "with_calls", "written"]

#: Takes a delegate's name and its arguments, returns its results.
Execute: TypeAlias = "Callable[[str, Sequence[torch.Tensor]], list[torch.Tensor]]"

_EXECUTE: Final[ContextVar[Execute]] = ContextVar("execute")

_LIBRARY: Final = torch.library.Library("qcore_tosa", "FRAGMENT")
_LIBRARY.define("delegate(Tensor[] inputs, str name) -> Tensor[]")
_LIBRARY.impl(
    "delegate", lambda inputs, name: _EXECUTE.get()(name, inputs), "CompositeExplicitAutograd"
)


@contextmanager
def executing(execute: Execute) -> Iterator[None]:
    """Say what executes the delegates while the context lasts.

    Args:
        execute: Takes a delegate's name and its arguments.

    Yields:
        Nothing.
    """
    before = _EXECUTE.set(execute)
    try:
        yield
    finally:
        _EXECUTE.reset(before)


def with_calls(partitioned: ExportedProgram) -> ExportedProgram:
    """Call delegates by name, in the bodies of conditionals and loops, too.

    Args:
        partitioned: The graph after partitioning; left as it is.

    Returns:
        A program of torch's operators and of calls of delegates, without inputs of the user's.
    """
    from torch._export.verifier import Verifier
    from torch.fx import GraphModule

    from qcore.graph import clone

    root = clone(partitioned.graph_module)
    for name, module in list(root.named_modules()):
        if isinstance(module, GraphModule):
            _call_by_name(module, f"{name}." if name else "")
    program = private_copy(partitioned, root, verifiers=[Verifier])
    program._example_inputs = None  # The user's data stays with the user.
    return program


def _call_by_name(graph: GraphModule, prefix: str) -> None:
    for node in list(graph.graph.nodes):
        # All else differs from one lowering to the next.
        node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
        if node.op != "call_function":
            continue
        if calls_delegate(node.target):
            delegate, *inputs = node.args
            node.target = torch.ops.qcore_tosa.delegate.default
            node.args = (inputs, f"{prefix}{delegate.target}")
            if not delegate.users:
                graph.graph.erase_node(delegate)
        else:
            node.target = without_edge(node.target)
    graph.delete_all_unused_submodules()
    graph.recompile()


def written(program: ExportedProgram) -> bytes:
    """Return a program as the bytes of a file.

    Args:
        program: What :func:`with_calls` returned.

    Returns:
        The bytes of torch's own archive.
    """
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def read_calls(data: bytes) -> ExportedProgram:
    """Read what :func:`written` returned, without running what it brings.

    Args:
        data: The bytes.

    Returns:
        The program.

    Raises:
        RuntimeExecutionError: The bytes are none of these, or hold what could run code.
    """
    import_executorch()  # registers the operators that quantize, and those of memory layouts
    try:
        return read_exported(io.BytesIO(data))
    except QcoreError as error:
        raise RuntimeExecutionError(
            "The graph that was saved beside the program cannot be read here. Load it with the "
            "torch that saved it, or lower the quantized model again. The cause is chained to "
            "this error."
        ) from error
