"""Executing lowered programs on the TOSA reference model."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from qcore.errors import RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering import ChildProcess, Latency, NoRunner, Runner, Saved
from qcore_executorch.walk import initial_state, walk
from qcore_tosa.calls import Execute, executing, read_calls, with_calls, written

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram

    from qcore_tosa.artifacts import Delegate

__all__ = ["NO_GRAPHS", "TIMEOUT_S", "ReferenceRunner", "TosaGraph", "runner_of"]

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Longest time in seconds for one run where the user sets none; emulations are slow.
TIMEOUT_S: Final = 600.0

#: What runs an artifact alone, as written by ``program.buffer``.
NO_GRAPHS: Final = NoRunner(
    "The TOSA reference model needs the graphs that the program was compiled from. They are in the "
    "file that program.save() writes, and not in the artifact alone: load that file, or lower the "
    "quantized model again."
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


@attrs.frozen
class TosaGraph:
    """The TOSA graph of one delegate, with how its arguments and results map to tensors.

    Attributes:
        name: The delegate's path in the lowered graph.
        tosa: The graph, a flatbuffer.
        inputs: For each input, its position among the delegate's arguments and the order in which
            its dimensions lie in memory.
        outputs: For each output, its type, its sizes and that order.
    """

    name: str
    tosa: bytes = attrs.field(repr=False)
    inputs: tuple[tuple[int, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def of(cls, delegate: Delegate) -> TosaGraph:
        """Read it off a delegate."""
        program = delegate.module.original_module
        names = list(program.graph_signature.user_inputs)
        values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
        taken = delegate.compilation.input_names
        # An argument that the graph does not use is missing from it.
        known = set(taken) <= set(names)
        positions = map(names.index, taken) if known else range(len(names))
        results = [node.meta["val"] for node in program.graph.output_node().args[0]]
        return cls(
            delegate.name,
            delegate.compilation.tosa,
            tuple((index, tuple(values[names[index]].dim_order())) for index in positions),
            tuple((_name(v.dtype), tuple(v.shape), tuple(v.dim_order())) for v in results),
        )

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**attrs.asdict(self), "tosa": base64.b64encode(self.tosa).decode()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TosaGraph:
        """Read what :meth:`to_data` returned."""
        return cls(
            data["name"],
            base64.b64decode(data["tosa"]),
            tuple((index, tuple(order)) for index, order in data["inputs"]),
            tuple((dtype, tuple(shape), tuple(order)) for dtype, shape, order in data["outputs"]),
        )

    def execute(
        self, process: _ReferenceProcess, file: str, values: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Execute the graph on the delegate's arguments."""
        arrays = [_to_array(values[index], order) for index, order in self.inputs]
        results = process.execute(file, arrays)
        return [_to_tensor(out, *like) for out, like in zip(results, self.outputs, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _to_array(value: torch.Tensor, order: Sequence[int]) -> Array:
    """Lay a tensor out in memory as the graph declares it: a TOSA tensor has no strides."""
    import torch

    dense = value.detach().permute(*order).contiguous()
    array: Array = (dense.view(torch.uint16) if dense.dtype is torch.bfloat16 else dense).numpy()
    return array


def _to_tensor(
    array: Array, dtype: str, shape: Sequence[int], order: Sequence[int]
) -> torch.Tensor:
    import numpy as np
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    laid_out = flat.view(getattr(torch, dtype)).reshape([shape[dim] for dim in order])
    return laid_out.permute([order.index(dim) for dim in range(len(order))])


@attrs.frozen(eq=False)
class _ReferenceSession:
    """A program on the reference model; what no delegate took runs in PyTorch."""

    program: ExportedProgram
    state: dict[str, Any]
    execute: Execute
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        """Execute the program once."""
        if method != "forward":
            raise RuntimeExecutionError(
                f"The program has no method {method!r} on the reference model; it has: forward."
            )
        with self._lock, executing(self.execute):
            return walk(self.program, self.state, inputs)

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
        program: The lowered graph, with delegates called by name, or that as the bytes of a file;
            what no delegate took runs in PyTorch.
        graphs: Those of the delegates.
        timeout_s: Longest time in seconds for each graph.
    """

    program: ExportedProgram | bytes = attrs.field(repr=False)
    graphs: tuple[TosaGraph, ...] = attrs.field(repr=False)
    timeout_s: float = attrs.field(default=TIMEOUT_S, validator=attrs.validators.gt(0))

    def __str__(self) -> str:
        return "Arm's TOSA reference model"

    @property
    def emulation(self) -> str:
        """The reference model: what it takes says nothing about a device."""
        return str(self)

    @classmethod
    def of(
        cls, partitioned: ExportedProgram, delegates: Sequence[Delegate], timeout_s: float
    ) -> ReferenceRunner:
        """Take what executes a program from its lowering."""
        return cls(with_calls(partitioned), tuple(map(TosaGraph.of, delegates)), timeout_s)

    @classmethod
    def from_needs(cls, program: str, graphs: Sequence[Any], timeout_s: float) -> ReferenceRunner:
        """Read what :meth:`needs` returned."""
        return cls(base64.b64decode(program), tuple(map(TosaGraph.from_data, graphs)), timeout_s)

    def needs(self) -> dict[str, Any]:
        """Return what a saved program takes along."""
        data = self.program if isinstance(self.program, bytes) else written(self.program)
        return {
            "program": base64.b64encode(data).decode(),
            "graphs": [graph.to_data() for graph in self.graphs],
            "timeout_s": self.timeout_s,
        }

    def __reduce__(self) -> Any:
        """Pickle what a file would hold."""
        return partial(type(self).from_needs, **self.needs()), ()

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[_ReferenceSession]:
        """Start a process that executes the graphs.

        Args:
            buffer: The ``.pte``, which holds the same graphs compiled; not read.

        Yields:
            The session.

        Raises:
            RuntimeUnavailableError: The reference model is not installed.
            RuntimeExecutionError: The graph comes from a file that another torch wrote.
        """
        del buffer
        data = self.program
        program = read_calls(data) if isinstance(data, bytes) else data
        graphs = {graph.name: (f"{i}.tosa", graph) for i, graph in enumerate(self.graphs)}
        files = {file: graph.tosa for file, graph in graphs.values()}
        process = _ReferenceProcess(files, self.timeout_s)

        def execute(name: str, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            file, graph = graphs[name]
            return graph.execute(process, file, values)

        try:
            yield _ReferenceSession(program, initial_state(program), execute)
        finally:
            process.close()


def runner_of(saved: Saved) -> Runner:
    """Return what executes a program from a file.

    Args:
        saved: What was saved beside it.

    Returns:
        The runner; one that says why not where the file has the artifact alone.
    """
    return ReferenceRunner.from_needs(**saved.needs) if saved.needs else NO_GRAPHS
