"""The way from a converted model to an ExecuTorch program, in steps that a backend overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
from torch.utils import _pytree as pytree

from qcore.annotation import make_functional
from qcore.compat.fakes import quick_fakes
from qcore.compat.torch import TRACING
from qcore.errors import LoweringError, QcoreError
from qcore.lowering import LoweredProgram, Runner, TensorSpec, program_specs
from qcore.progress import stage
from qcore.quiet import quiet, spared_gc
from qcore.report import NodeRecord
from qcore_executorch.affine import write_out_affine
from qcore_executorch.compat.executorch import (
    quick_merging,
    quick_passes,
    quick_tracing,
    sparing_decompositions,
)
from qcore_executorch.compat.torch import (
    deferred_code,
    quick_decompositions,
    shared_provenance,
    unrecorded_sizes,
    unrecorded_stacks,
)
from qcore_executorch.embeddings import fuse_embeddings
from qcore_executorch.graphs import write_into_copies
from qcore_executorch.importing import import_executorch
from qcore_executorch.inspection import as_written, inspect_lowered, stated_reasons
from qcore_executorch.kernels import kernel_modules, missing_kernels
from qcore_executorch.mending import lower_checked, root_cause
from qcore_executorch.pte import PTE
from qcore_executorch.report import ExecuTorchReport
from qcore_executorch.rewriting import name_parameters
from qcore_executorch.runner import ExecuTorchRunner
from qcore_executorch.veto import Veto, name_origins

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["STAGES", "ExecuTorchLowering"]

#: The stages that take long, with their usual shares of a lowering, measured on EfficientNet-Lite0.
STAGES: Final = {"partition": 0.7, "emit": 0.06, "check": 0.14}


@attrs.define
class ExecuTorchLowering:
    """Lowers converted models with ExecuTorch, delegating what the partitioners take.

    What no partitioner takes stays in the program and runs on ExecuTorch's kernels. A backend makes
    one with its partitioners and its runner, or a subclass that overrides steps:
    :meth:`rewritten`, :meth:`partitioned`, :meth:`emitted`, :meth:`program`, :meth:`executed`,
    :meth:`around`.

    Attributes:
        backend: Name of the backend, for the program, its report and messages.
        partitioners: ExecuTorch partitioners, tried in this order.
        runner: Executes the program on this machine; None where no host can.
        edge_passes: ExecuTorch passes over the edge graph, before the partitioners.
        compile_config: ExecuTorch's ``EdgeCompileConfig``; None takes its defaults.
        executorch_config: ExecuTorch's ``ExecutorchBackendConfig``; None takes its defaults.
        constant_methods: Values that the program returns from methods of these names, beside
            ``forward``: numbers, tensors and lists of numbers, such as what a text runner reads.
        check: Execute the program once, compare it with the converted model, and leave to portable
            kernels what a delegate gets wrong. Without a runner, what does not lower is found so.
    """

    backend: str
    partitioners: Sequence[Any] = ()
    runner: Runner | None = None
    edge_passes: Sequence[Any] = attrs.field(default=(), kw_only=True)
    compile_config: Any = attrs.field(default=None, kw_only=True)
    executorch_config: Any = attrs.field(default=None, kw_only=True)
    constant_methods: Mapping[str, Any] | None = attrs.field(default=None, kw_only=True)
    check: bool = attrs.field(default=True, kw_only=True)
    _veto: Veto | None = attrs.field(factory=Veto, init=False)

    def lower(self, program: ExportedProgram) -> LoweredProgram:
        """Lower a model.

        Args:
            program: The converted model, as the hook ``lower`` gets it; changed.

        Returns:
            The program with its report.

        Raises:
            RuntimeUnavailableError: ExecuTorch is not installed.
            LoweringError: A stage of the lowering fails; with ``check``, no program is right.
        """
        import_executorch()
        if self.executorch_config is None:
            _require_bounds(program_specs(program)[0], self.backend)
        if self.check:
            if isinstance(self.runner, ExecuTorchRunner):
                self.runner.prepare()
            return lower_checked(self.lowered_once, program, self.backend, self.executed)
        return self.lowered_once(program, Veto())

    def executed(self, program: LoweredProgram, inputs: Sequence[Any]) -> Sequence[Any]:
        """Execute a program once, to check it.

        Args:
            program: The program; it has a runner.
            inputs: The flat arguments.

        Returns:
            The flat outputs.
        """
        assert program.runner is not None
        with program.runner.session(program.buffer) as session:
            return session.run(inputs)

    def lowered_once(self, program: ExportedProgram, veto: Veto | None) -> LoweredProgram:
        """Take a program through the steps once.

        Args:
            program: The converted model; changed.
            veto: What the partitioners may not take; None for no partitioners at all.

        Returns:
            The program with its report.

        Raises:
            RuntimeUnavailableError: ExecuTorch is not installed.
            LoweringError: A step fails.
        """
        self._veto = veto
        clock = _Clock(self.backend)
        with (
            TRACING,
            quiet(),
            spared_gc(),
            shared_provenance(),
            deferred_code(),
            quick_decompositions(),
            quick_fakes(),
            unrecorded_sizes(),
            unrecorded_stacks(),
            quick_merging(),
            quick_passes(),
            quick_tracing(),
            sparing_decompositions(),
            self.around(),
        ):
            with clock.stage("rewrite"):
                # Backends compute what depends on no input when lowering: once, written by nobody.
                make_functional(program.graph_module)
                write_into_copies(program)
                name_parameters(program)
                exported = self.rewritten(program)
                write_out_affine(exported.graph_module, None if veto is None else veto.refused)
                name_origins(exported)
            inputs, outputs = program_specs(exported)
            structure = _flat_if_unwritable(exported)
            with clock.stage("partition"), stated_reasons() as reasons:
                edge = self.partitioned(exported)
                fused = fuse_embeddings(edge)
            self.on_partitioned(edge.exported_program())
            refused = {} if veto is None else veto.reasons
            reasons = {**reasons, **refused, **fused}
            found = inspect_lowered(edge.exported_program().graph_module, reasons)
            runner = self.runner
            for module in kernel_modules([*found.stray, *found.undelegated]):
                import_executorch(module)
                runner = _with_module(runner, module)
            with clock.stage("emit"):
                buffer = self.emitted(edge)
                self._require_kernels(buffer, runner, found.undelegated)
        report = ExecuTorchReport(
            backend=self.backend,
            delegates=found.delegates,
            delegated=tuple(found.delegated),
            undelegated=tuple(found.undelegated),
            stray=tuple(found.stray),
            program_bytes=len(buffer),
            seconds=clock.seconds,
        )
        return self.program(
            LoweredProgram(
                buffer=buffer,
                backend=self.backend,
                report=report,
                runner=runner,
                inputs=inputs,
                outputs=outputs,
                structure=structure,
                suffix=PTE.suffix,
            )
        )

    def _require_kernels(self, buffer: bytes, runner: Any, nodes: Sequence[NodeRecord]) -> None:
        """Raise where the runtime has no kernel for an operator outside the delegates."""
        if not nodes or not isinstance(runner, ExecuTorchRunner):
            return
        missing = missing_kernels(buffer, runner.modules)
        if not missing:
            return
        packets = [name.partition(".")[0].replace("::", ".") for name in missing]
        written = {as_written(f"{packet}.out").rpartition(".")[0] for packet in packets}
        users = [str(n) for n in nodes if n.operator.rpartition(".")[0] in written]
        raise LoweringError(
            f"Lowering for {self.backend}: ExecuTorch's runtime has no kernel for "
            f"{', '.join(missing)}, which no delegate takes: {'; '.join(users) or 'the model'}. "
            "Replace it in the model by other operators, or give the runner a module that "
            "registers its kernel."
        )

    def around(self) -> AbstractContextManager[Any]:
        """Return what holds while a model is lowered, such as changes to ExecuTorch's passes."""
        return nullcontext()

    def rewritten(self, program: ExportedProgram) -> ExportedProgram:
        """Bring the converted model into the form that the partitioners expect.

        Args:
            program: The converted model; may be changed.

        Returns:
            The program to lower.
        """
        return program

    def partitioned(self, program: ExportedProgram) -> Any:
        """Turn the rewritten model into an edge program with delegates.

        Args:
            program: What :meth:`rewritten` returned.

        Returns:
            ExecuTorch's ``EdgeProgramManager``.
        """
        from torch.fx import GraphModule

        exir = import_executorch()
        partitioners = self.allowed(self.partitioners)
        constants = dict(self.constant_methods or {}) or None
        root = program.graph_module
        if not any(m is not root and isinstance(m, GraphModule) for m in root.modules()):
            return exir.to_edge_transform_and_lower(
                program,
                transform_passes=list(self.edge_passes) or None,
                partitioner=partitioners,
                constant_methods=constants,
                compile_config=self.compile_config,
            )
        # The one-step form keeps operators whole for the partitioners, but looks for them outside
        # the bodies of conditionals and loops only; the older form decomposes them everywhere.
        edge = exir.to_edge(program, constant_methods=constants, compile_config=self.compile_config)
        if self.edge_passes:
            edge = edge.transform(list(self.edge_passes))
        for partitioner in partitioners:
            edge = edge.to_backend(partitioner)
        return edge

    def allowed(self, partitioners: Sequence[Any]) -> list[Any]:
        """Keep partitioners from what is known to be wrong in a delegate.

        Args:
            partitioners: ExecuTorch's partitioners.

        Returns:
            Those to use.
        """
        return [] if self._veto is None else self._veto.over(partitioners)

    def on_partitioned(self, program: ExportedProgram) -> None:
        """Look at the partitioned program, with its delegates, before it is emitted.

        Args:
            program: Copy what is to be kept: emitting rewrites it.
        """

    def emitted(self, edge: Any) -> bytes:
        """Turn the partitioned program into the bytes of a ``.pte``.

        Args:
            edge: ExecuTorch's ``EdgeProgramManager``.

        Returns:
            The bytes.
        """
        config = self.executorch_config
        if config is None:
            config = import_executorch().ExecutorchBackendConfig()
        return bytes(edge.to_executorch(config).buffer)

    def program(self, lowered: LoweredProgram) -> LoweredProgram:
        """Complete the program with what the backend has beside it.

        Args:
            lowered: The program.

        Returns:
            It, or one of a class of the backend's own.
        """
        return lowered


class _Clock:
    """Times the stages and gives their failures a name."""

    _ADVICE: ClassVar[dict[str, str]] = {
        "rewrite": "Check that torch.export.export(model, example_inputs) succeeds by itself.",
        "partition": "Replace the operator at fault, which the check of lower (check=True, the "
        "default) looks for.",
        "emit": "An operator without an ExecuTorch kernel stops here: replace it in the model, or "
        "import the module that registers its kernel before lowering.",
    }

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        try:
            with stage(name, self.seconds):
                yield
        except QcoreError:
            raise
        except Exception as error:
            root = root_cause(error)
            lines = str(root).strip().splitlines()
            raise LoweringError(
                f"Lowering for {self._backend} failed in the stage {name!r}: "
                f"{type(root).__name__}: {lines[0] if lines else 'no message'}. "
                f"{self._ADVICE[name]} The cause is chained to this error."
            ) from error


def _flat_if_unwritable(program: ExportedProgram) -> Any:
    """Return the structure of the outputs; make it flat where a ``.pte`` has no words for it.

    Torch registers what ``torch.max`` and others return without a name to write it down by.
    """
    structure = program.call_spec.out_spec
    try:
        pytree.treespec_dumps(structure)
    except NotImplementedError:
        flat = pytree.tree_structure((0,) * structure.num_leaves)
        program.module_call_graph[0].signature.out_spec = flat
    return structure


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
