"""Executing lowered programs on the TOSA reference model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from qcore.errors import RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering import ChildProcess, Latency, NoRunner
from qcore_executorch.walk import initial_state, walk

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram

    from qcore_tosa.artifacts import Delegate

__all__ = ["NO_GRAPHS", "TIMEOUT_S", "ReferenceRunner"]

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Longest time in seconds for one run where the user sets none; emulations are slow.
TIMEOUT_S: Final = 600.0

#: What runs a program that has left the process in which it was lowered.
NO_GRAPHS: Final = NoRunner(
    "The TOSA reference model runs a program where it was lowered only: its graphs are in no file "
    "and in no pickle. Run the program that lower() returned, or lower the quantized model again; "
    "it travels with result.save() and qcore.load_quantized()."
)


class _ReferenceProcess(ChildProcess):
    """One process with the TOSA graphs of a program."""

    def __init__(self, graphs: Mapping[str, bytes], timeout_s: float) -> None:
        super().__init__(
            "qcore_tosa._reference_child", files=graphs, config={}, env={}, timeout_s=timeout_s
        )

    def execute(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        """Execute one graph on arrays in the layout that it takes."""
        import numpy as np

        np.savez(self.folder / "inputs.npz", **{str(i): value for i, value in enumerate(inputs)})
        self.ask({"op": "run", "graph": graph})
        with np.load(self.folder / "outputs.npz") as archive:
            return [archive[str(index)] for index in range(len(archive))]

    def _refusal(self, reply: Mapping[str, Any]) -> RuntimeExecutionError | RuntimeUnavailableError:
        if reply["status"] == "no_model":
            return RuntimeUnavailableError(
                "Executing a TOSA graph needs Arm's reference model, which does not import here "
                f"({reply['text']}). Install it: pip install tosa-tools."
            )
        return RuntimeExecutionError(
            f"The TOSA reference model refused: {reply['text']}. Save the graph with "
            f"program.save_tosa(path) to look into it.{self._tail()}"
        )


@attrs.frozen(eq=False)
class _Graph:
    """The TOSA graph of one delegate, with how its arguments and results map to tensors."""

    file: str
    delegate: Delegate

    @cached_property
    def _inputs(self) -> list[tuple[int, Any]]:
        """Position among the delegate's arguments, and the value to lay it out like."""
        program = self.delegate.module.original_module
        names = list(program.graph_signature.user_inputs)
        values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
        taken = self.delegate.compilation.input_names
        # An argument that the graph does not use is missing from it.
        known = set(taken) <= set(names)
        positions = map(names.index, taken) if known else range(len(names))
        return [(index, values[names[index]]) for index in positions]

    @cached_property
    def _outputs(self) -> list[Any]:
        graph = self.delegate.module.original_module.graph
        return [node.meta["val"] for node in graph.output_node().args[0]]

    def execute(self, process: _ReferenceProcess, values: Sequence[torch.Tensor]) -> list[Any]:
        """Execute the graph on the delegate's arguments."""
        arrays = [_to_array(values[index], like) for index, like in self._inputs]
        results = process.execute(self.file, arrays)
        return [_to_tensor(out, like) for out, like in zip(results, self._outputs, strict=True)]


def _to_array(value: torch.Tensor, like: torch.Tensor) -> Array:
    """Lay a tensor out in memory as the graph declares it: a TOSA tensor has no strides."""
    import torch

    dense = value.detach().permute(like.dim_order()).contiguous()
    array: Array = (dense.view(torch.uint16) if dense.dtype is torch.bfloat16 else dense).numpy()
    return array


def _to_tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    order = like.dim_order()
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    laid_out = flat.view(like.dtype).reshape([like.shape[dim] for dim in order])
    return laid_out.permute([order.index(dim) for dim in range(len(order))])


@attrs.frozen(eq=False)
class _ReferenceSession:
    """A program on the reference model; what no delegate took runs in PyTorch."""

    program: ExportedProgram
    state: dict[str, Any]
    execute: Callable[[Any, Sequence[Any]], list[Any]]
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        """Execute the program once."""
        if method != "forward":
            raise RuntimeExecutionError(
                f"The program has no method {method!r} on the reference model; it has: forward."
            )
        with self._lock:
            return walk(self.program, self.state, inputs, self.execute)

    def benchmark(
        self, inputs: Sequence[Any], *, warmup: int, runs: int, method: str = "forward"
    ) -> Latency:
        """Time the reference model, which says nothing about a device."""
        seconds = []
        for index in range(warmup + runs):
            start = time.perf_counter()
            self.run(inputs, method=method)
            if index >= warmup:
                seconds.append(time.perf_counter() - start)
        return Latency.of(seconds)


@attrs.frozen(eq=False)
class ReferenceRunner:
    """Executes the TOSA graphs of a program on Arm's reference model, in a child process.

    The reference model defines what a TOSA graph computes; integers come out exactly as a
    conforming device computes them.

    Attributes:
        program: The graph after partitioning; what no delegate took runs in PyTorch.
        delegates: Its delegates.
        timeout_s: Longest time in seconds for each graph.
    """

    program: ExportedProgram = attrs.field(repr=False)
    delegates: tuple[Delegate, ...] = attrs.field(repr=False)
    timeout_s: float = attrs.field(default=TIMEOUT_S, validator=attrs.validators.gt(0))

    def __str__(self) -> str:
        return "Arm's TOSA reference model"

    @property
    def elsewhere(self) -> NoRunner:
        """What a pickled program has in its place."""
        return NO_GRAPHS

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[_ReferenceSession]:
        """Start a process that executes the graphs.

        Args:
            buffer: The ``.pte``, which holds the same graphs compiled; not read.

        Yields:
            The session.

        Raises:
            RuntimeUnavailableError: The reference model is not installed.
        """
        del buffer
        graphs = {
            id(delegate.module): _Graph(f"{index}.tosa", delegate)
            for index, delegate in enumerate(self.delegates)
        }
        files = {graph.file: graph.delegate.compilation.tosa for graph in graphs.values()}
        process = _ReferenceProcess(files, self.timeout_s)

        def execute(module: Any, values: Sequence[Any]) -> list[Any]:
            return graphs[id(module)].execute(process, values)

        try:
            yield _ReferenceSession(self.program, initial_state(self.program), execute)
        finally:
            process.close()
