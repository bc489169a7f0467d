"""The kernels of ExecuTorch's runtime: what has none, and what is written otherwise for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from qcore.graph import positions_are_used
from qcore_executorch.importing import import_executorch
from qcore_executorch.rewriting import Tensors, rewritten

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from qcore.report import NodeRecord, StrayNode

__all__ = [
    "PORTABLE_FORMS",
    "QUANTIZED_KERNELS",
    "RUNTIME",
    "kernel_modules",
    "missing_kernels",
    "portable_forms",
]

aten = torch.ops.aten

#: The module of ExecuTorch's runtime.
RUNTIME: Final = "executorch.extension.pybindings.portable_lib"

#: The module that registers ExecuTorch's kernels for quantize and dequantize nodes.
QUANTIZED_KERNELS: Final = "executorch.kernels.quantized"

#: Namespace of operators -> what the runtime's process imports for their kernels.
_MODULES: Final = {
    "quantized_decomposed": QUANTIZED_KERNELS,
    "llama": "executorch.extension.llm.custom_ops",
}


def kernel_modules(nodes: Iterable[NodeRecord | StrayNode]) -> tuple[str, ...]:
    """Return the modules to import for the kernels of operators outside the delegates.

    Args:
        nodes: The nodes outside.

    Returns:
        The modules' names.
    """
    spaces = {node.operator.partition(".")[0] for node in nodes}
    return tuple(module for space, module in _MODULES.items() if space in spaces)


def missing_kernels(buffer: bytes, modules: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the operators of a program that the runtime has no kernel for.

    Args:
        buffer: The bytes of a ``.pte``.
        modules: The modules that register further kernels.

    Returns:
        The operators, such as ``aten::hypot.out``.
    """
    serialize: Any = import_executorch("executorch.exir._serialize._program")
    runtime: Any = import_executorch(RUNTIME)
    for module in modules:
        import_executorch(module)
    known = set(runtime._get_operator_names())
    plans = serialize.deserialize_pte_binary(buffer).program.execution_plan
    operators = [op for plan in plans for op in plan.operators]
    names = [f"{op.name}.{op.overload}" if op.overload else op.name for op in operators]
    return tuple(dict.fromkeys(name for name in names if name not in known))


def portable_forms(program: ExportedProgram) -> ExportedProgram:
    """Write operators that neither kernels nor ExecuTorch's decompositions know as others.

    Args:
        program: The exported converted model.

    Returns:
        The same program where there are none, else a new one.
    """
    return rewritten(program, _has_form, _write)


def _has_form(node: Node) -> bool:
    return node.target in PORTABLE_FORMS and not positions_are_used(node)


def _write(model: GraphModule, node: Node, tensors: Tensors) -> None:
    with model.graph.inserting_before(node):
        new = model.graph.call_function(PORTABLE_FORMS[node.target], node.args, node.kwargs)
    new.meta = {k: v for k, v in node.meta.items() if k != "val"}
    node.replace_all_uses_with(new)


def _hypot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(a * a + b * b)


def _cumprod(x: torch.Tensor, dim: int, *, dtype: Any = None) -> torch.Tensor:
    x = x if dtype is None else x.to(dtype)
    if not x.dim():
        return x
    # Products of 1, 2, 4, ... neighbours: a logarithm of the size in steps.
    size, reach = x.shape[dim], 1
    for _ in range(math.ceil(math.log2(size)) if size > 1 else 0):
        head = aten.slice.Tensor(x, dim, 0, reach)
        tail = aten.slice.Tensor(x, dim, reach, size) * aten.slice.Tensor(x, dim, 0, size - reach)
        x, reach = torch.cat([head, tail], dim), 2 * reach
    return x


def _rrelu(
    x: torch.Tensor,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> torch.Tensor:
    del training, generator  # A program does not train.
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def _adaptive_max_pool(x: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, None]:
    for axis, count in zip(range(-len(sizes), 0), sizes, strict=True):
        size = x.shape[axis]
        bounds = [
            (index * size // count, -(-(index + 1) * size // count)) for index in range(count)
        ]
        windows = (aten.slice.Tensor(x, axis, low, high) for low, high in bounds)
        parts = [window.amax(axis, keepdim=True) for window in windows]
        x = torch.cat(parts, axis)
    return x, None


#: Operator -> what computes the same by others.
PORTABLE_FORMS: Final[dict[Any, Callable[..., Any]]] = {
    aten.hypot.default: _hypot,
    aten.cumprod.default: _cumprod,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.rrelu.default: _rrelu,
    aten.rrelu_.default: _rrelu,
}
