"""The way from a converted model to an ExecuTorch program, shared by the backend plugins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from qcore.errors import LoweringError, QcoreError, RuntimeUnavailableError
from qcore.lowering.embeddings import fuse_embeddings
from qcore.lowering.export import (
    bounds_of,
    export_for_lowering,
    private_copy,
    quick_decompositions,
    shared_provenance,
    user_input_names,
)
from qcore.lowering.inspection import inspect_lowered, stated_reasons
from qcore.lowering.program import LoweredProgram
from qcore.lowering.report import LoweringReport
from qcore.lowering.runner import ExecuTorchRunner, Runner
from qcore.lowering.specs import TensorSpec, spec_of
from qcore.quiet import quiet, spared_gc

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["import_executorch", "lower_with_partitioner"]

QUANTIZED_KERNELS = "executorch.kernels.quantized"
"""The module that registers ExecuTorch's kernels for quantize and dequantize nodes."""

_INSTALL = 'pip install "qcore-quant[executorch]"'


def import_executorch(module: str = "executorch.exir") -> ModuleType:
    """Import a part of ExecuTorch without its noise.

    Args:
        module: The module to import.

    Returns:
        The module.

    Raises:
        RuntimeUnavailableError: ExecuTorch is not installed, or that part of it does not import.
    """
    import importlib

    with quiet():
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"Lowering needs {module}, which does not import ({error}). Install ExecuTorch "
                f"with the version this release was built for: {_INSTALL}."
            ) from error


def lower_with_partitioner(
    program: ExportedProgram | GraphModule,
    example_inputs: Sequence[Any] | None,
    *,
    backend: str,
    partitioners: Sequence[Any],
    runner: Runner | None,
    edge_passes: Sequence[Any] = (),
    dynamic_shapes: Any = None,
    compile_config: Any = None,
    executorch_config: Any = None,
    partition: Callable[[ExportedProgram], Any] | None = None,
    on_partitioned: Callable[[ExportedProgram], None] | None = None,
) -> LoweredProgram:
    """Lower a model with ExecuTorch, delegating what the partitioners take.

    The caller's model is left as it is. What no partitioner takes stays in the program and runs
    on portable kernels.

    Args:
        program: The converted model: a ``GraphModule``, which is exported again, or an
            ``ExportedProgram``, which is used as captured.
        example_inputs: The model's positional arguments, in any memory layout; a lone tensor
            stands for a model with one argument. None is allowed for an ``ExportedProgram``.
        backend: Name of the backend, for the program, its report and messages.
        partitioners: ExecuTorch partitioners, tried in this order.
        runner: Executes the program on this machine; None where no host can.
        edge_passes: ExecuTorch passes over the edge graph, before the partitioners.
        dynamic_shapes: As ``torch.export.export`` takes it. None keeps the dynamic dimensions
            that the graph was captured with. An ``ExportedProgram`` brings its own.
        compile_config: ExecuTorch's ``EdgeCompileConfig``; None takes its defaults.
        executorch_config: ExecuTorch's ``ExecutorchBackendConfig``; None takes its defaults.
        partition: Takes the exported model and returns ExecuTorch's ``EdgeProgramManager`` of the
            partitioned one, in the place of ``partitioners`` and ``compile_config``.
        on_partitioned: Gets the partitioned program, with its delegates, before it is emitted; for
            backends that check it later.

    Returns:
        The program with its report.

    Raises:
        RuntimeUnavailableError: ExecuTorch is not installed.
        LoweringError: The example inputs do not fit, or a stage of the lowering fails.
    """
    exir = import_executorch("executorch.exir")
    clock = _Clock(backend)
    with quiet(), spared_gc(), shared_provenance(), quick_decompositions():
        with clock.stage("export"):
            exported = export_for_lowering(program, example_inputs, dynamic_shapes)
        inputs, outputs = _specs(exported)
        if executorch_config is None:
            _require_bounds(inputs, backend)
        with clock.stage("partition"), stated_reasons() as reasons:
            if partition is None:
                edge = _partition(exir, exported, edge_passes, partitioners, compile_config)
            else:
                edge = partition(exported)
            fused = fuse_embeddings(edge)
        if on_partitioned is not None:
            # Emitting rewrites the graph to operators that write into planned memory.
            on_partitioned(private_copy(edge.exported_program()))
        found = inspect_lowered(edge.exported_program().graph_module, {**reasons, **fused})
        if found.stray or fused:
            # They have kernels on both sides, which are registered on request only.
            import_executorch(QUANTIZED_KERNELS)
            runner = _with_module(runner, QUANTIZED_KERNELS)
        with clock.stage("emit"):
            manager = edge.to_executorch(
                exir.ExecutorchBackendConfig() if executorch_config is None else executorch_config
            )
            buffer = bytes(manager.buffer)
    report = LoweringReport(
        backend=backend,
        delegates=found.delegates,
        delegated=tuple(found.delegated),
        undelegated=tuple(found.undelegated),
        stray=tuple(found.stray),
        pte_bytes=len(buffer),
        seconds=clock.seconds,
    )
    return LoweredProgram(
        buffer=buffer,
        backend=backend,
        report=report,
        runner=runner,
        inputs=inputs,
        outputs=outputs,
        structure=exported.call_spec.out_spec,
    )


class _Clock:
    """Times the stages and gives their failures a name."""

    _ADVICE: ClassVar[dict[str, str]] = {
        "export": "Check that torch.export.export(model, example_inputs) succeeds by itself.",
        "partition": "Lower with partitioners=[] to see whether the graph or a partitioner is at "
        "fault.",
        "emit": "An operator without an ExecuTorch kernel stops here: replace it in the model, or "
        "import the module that registers its kernel before lowering.",
    }

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except QcoreError:
            raise
        except Exception as error:
            root = _root_cause(error)
            lines = str(root).strip().splitlines()
            raise LoweringError(
                f"Lowering for {self._backend} failed in the stage {name!r}: "
                f"{type(root).__name__}: {lines[0] if lines else 'no message'}. "
                f"{self._ADVICE[name]} The cause is chained to this error."
            ) from error
        finally:
            self.seconds[name] = time.perf_counter() - start


def _root_cause(error: BaseException) -> BaseException:
    """Return the exception that others were raised from; pass managers list their passes only."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _partition(
    exir: Any,
    exported: ExportedProgram,
    edge_passes: Sequence[Any],
    partitioners: Sequence[Any],
    compile_config: Any,
) -> Any:
    from torch.fx import GraphModule

    bodies = [
        module
        for module in exported.graph_module.modules()
        if module is not exported.graph_module and isinstance(module, GraphModule)
    ]
    if not bodies:
        return exir.to_edge_transform_and_lower(
            exported,
            transform_passes=list(edge_passes) or None,
            partitioner=list(partitioners),
            compile_config=compile_config,
        )
    # The one-step form keeps operators whole for the partitioners, but looks for them outside
    # the bodies of conditionals and loops only; the older form decomposes them everywhere.
    edge = exir.to_edge(exported, compile_config=compile_config)
    if edge_passes:
        edge = edge.transform(list(edge_passes))
    for partitioner in partitioners:
        edge = edge.to_backend(partitioner)
    return edge


def _specs(exported: ExportedProgram) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    from torch.export.graph_signature import OutputKind
    from torch.fx import Node

    signature, ranges = exported.graph_signature, exported.range_constraints

    def spec(name: str, value: Any) -> TensorSpec:
        return spec_of(name, value, lambda size: bounds_of(ranges, size))

    users = user_input_names(exported)
    nodes = list(exported.graph.nodes)
    inputs = tuple(
        spec(node.name, node.meta["val"])
        for node in nodes
        if node.op == "placeholder" and node.name in users
    )
    kinds = [output.kind is OutputKind.USER_OUTPUT for output in signature.output_specs]
    values = [v for v, is_user in zip(nodes[-1].args[0], kinds, strict=True) if is_user]
    outputs = tuple(
        spec(value.name, value.meta["val"])
        if isinstance(value, Node)
        else spec(f"output_{index}", value)
        for index, value in enumerate(values)
    )
    return inputs, outputs


def _require_bounds(inputs: Sequence[TensorSpec], backend: str) -> None:
    for item in inputs:
        for index, (low, high) in enumerate(item.bounds):
            if high is None:
                raise LoweringError(
                    f"Lowering for {backend} needs an upper limit for dimension {index} of "
                    f"{item.name!r}, which has none: the program's memory is planned for the "
                    f"largest input. Capture the model with dynamic_shapes that use "
                    f"torch.export.Dim(name, min={max(low, 1)}, max=...)."
                )


def _with_module(runner: Runner | None, module: str) -> Runner | None:
    if isinstance(runner, ExecuTorchRunner) and module not in runner.modules:
        modules: tuple[str, ...] = (*runner.modules, module)
        return attrs.evolve(runner, modules=modules)
    return runner
