"""Lowering by way of TOSA, shared by the backends whose compilers take it."""

from __future__ import annotations

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch.fx import GraphModule

from qcore.compat import Change
from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, check_options, private_copy
from qcore_executorch import ExecuTorchLowering, import_executorch
from qcore_executorch.inspection import DELEGATION_TAG, at_level
from qcore_executorch.kernels import portable_forms
from qcore_executorch.mending import UnmendableError
from qcore_tosa.artifacts import Compilation, delegates_of, recorded_compilations
from qcore_tosa.bodies import has_bodies, has_loops, passes_constants, put_back
from qcore_tosa.clamps import round_before_clamps
from qcore_tosa.compat.executorch import PARTITIONER, mended_passes, noted_rejections, untidied
from qcore_tosa.compile_spec import check_compile_spec
from qcore_tosa.constants import depending_on
from qcore_tosa.dynamic import decompose_dynamic
from qcore_tosa.limits import dynamic_size, miscomputed
from qcore_tosa.program import TosaProgram
from qcore_tosa.reference import TIMEOUT_S

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from qcore_executorch.veto import Veto

__all__ = ["TosaLowering", "lower_to_tosa"]

# Below "executorch", where the core collects the reasons that partitioners state.
_LOGGER = logging.getLogger("executorch.backends.qcore_tosa")

# An operator in a reason, printed with its schema.
_SCHEMA = re.compile(r"<EdgeOpOverload: ([^>]+)>: schema = .*?(?=: |$)")


@attrs.define
class TosaLowering(ExecuTorchLowering):
    """ExecuTorch's lowering for a compiler that takes TOSA.

    A device's backend says what is its own in class attributes, and overrides :meth:`compiled`.

    Attributes:
        compile_spec: ExecuTorch's compile specification of the target.
        timeout_s: Longest time in seconds for each run of a graph on the reference model.
    """

    #: ExecuTorch's partitioner class, as ``module:class``.
    partitioner: ClassVar[str] = "executorch.backends.arm.tosa.partitioner:TOSAPartitioner"
    #: The change that puts :meth:`compiled` in the place of the compiler; ``None`` where the TOSA
    #: graph itself is what is wanted.
    compiler: ClassVar[Change | None] = None
    #: Whether the device computes graphs that read nothing.
    constants: ClassVar[bool] = True
    #: Whether the compiler takes conditionals and loops, where the compile specification has TOSA's
    #: extension for them.
    control_flow: ClassVar[bool] = True
    #: The class of the program.
    program_type: ClassVar[type[TosaProgram]] = TosaProgram

    compile_spec: Any = attrs.field(default=None, kw_only=True)
    timeout_s: float = attrs.field(
        default=TIMEOUT_S, validator=attrs.validators.gt(0), kw_only=True
    )
    _compilations: Mapping[bytes, Compilation] = attrs.field(factory=dict, init=False)
    _partitioned: Any = attrs.field(default=None, init=False)

    def lowered_once(self, program: ExportedProgram, veto: Veto | None) -> LoweredProgram:
        """Take a program through, without the passes that save permutes where they stop at it."""
        again = private_copy(program)
        self._partitioned = None
        try:
            return super().lowered_once(program, veto)
        except LoweringError as error:
            if self._partitioned is not None or isinstance(error, UnmendableError):
                raise
            try:
                with untidied():
                    return super().lowered_once(again, veto)
            except LoweringError:
                raise error from error.__cause__

    def compiled(self, compile_: Callable[..., bytes], *args: Any, **kwargs: Any) -> Compilation:
        """Compile a TOSA graph.

        Args:
            compile_: ExecuTorch's compiler.
            *args: What it is called with, the TOSA graph first.
            **kwargs: The same by name.

        Returns:
            What was given to it and what it made of that.
        """
        raise NotImplementedError

    @contextmanager
    def around(self) -> Iterator[None]:
        """Quiet the backend, mend ExecuTorch's passes, and keep what is compiled."""
        # At "info" the backend dumps tables and makes its compilers verbose.
        backend = logging.getLogger("executorch.backends.arm")
        with at_level(backend, logging.ERROR), mended_passes(), ExitStack() as stack:
            if self.compiler is not None:
                recorded = recorded_compilations(self.compiler, self.compiled)
                self._compilations = stack.enter_context(recorded)
            yield

    def rewritten(self, program: ExportedProgram) -> ExportedProgram:
        """Write dynamic layers as integer products between float operators."""
        if varies := dynamic_size(program.graph, self.backend):
            raise UnmendableError(varies)
        self.compile_spec = _with_unsigned_io(program, self.compile_spec)
        return _as_compilers_take_it(portable_forms(program))

    def partitioned(self, program: ExportedProgram) -> Any:
        """Delegate what the compiler takes, and lower bodies apart where it does not take them."""
        exir, spec = import_executorch(), self.compile_spec
        whole = self.control_flow and spec.tosa_spec.support_extension("cf")
        loops = has_loops(program)
        if loops and not whole:
            raise UnmendableError(_no_loops(self.backend))
        apart = has_bodies(program) and not loops and (not whole or passes_constants(program))
        target = _without_control_flow(spec) if apart else spec
        partitioner = _partitioner(type(self), target, bodies=not apart)
        edge = exir.to_edge_transform_and_lower(
            program,
            partitioner=self.allowed([partitioner]),
            compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
        )
        if loops and has_loops(edge.exported_program()):
            raise UnmendableError(_no_loops(self.backend))
        if apart:
            put_back(edge, program, lambda body: self.partitioned(_as_compilers_take_it(body)))
        return edge

    def on_partitioned(self, program: ExportedProgram) -> None:
        """Keep the program with its delegates."""
        self._partitioned = private_copy(program)

    def program(self, lowered: LoweredProgram) -> LoweredProgram:
        """Add the TOSA graphs of the delegates, and what executes them."""
        delegates = delegates_of(self._partitioned, self._compilations)
        made = self.program_type.of(lowered, partitioned=self._partitioned, delegates=delegates)
        return made if made.runner else made.on_reference_model(timeout_s=self.timeout_s)


def lower_to_tosa(program: ExportedProgram, compile_spec: Any, **options: Any) -> TosaProgram:
    """Lower a model to TOSA graphs, which the reference model executes and no device does.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``TosaCompileSpec``.
        **options: ``check=False`` leaves out executing the program once and mending it;
            ``timeout_s``, the seconds that one run of a graph on the reference model may take
            (default: 600).

    Returns:
        The program.

    Raises:
        LoweringError: An option is unknown, a shape is dynamic, or ExecuTorch cannot lower the
            model.
        QcoreError: The compile specification is a device's.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    check_options("tosa", options, ("check", "timeout_s"))
    specs = import_executorch("executorch.backends.arm.tosa.compile_spec")
    advice = "Lower with that backend's quantizer, or pass the specification 'TOSA-1.0+INT'."
    check_compile_spec("tosa", compile_spec, specs.TosaCompileSpec, advice)
    options = {"check": True, **options}
    lowered = TosaLowering("tosa", compile_spec=compile_spec, **options).lower(program)
    assert isinstance(lowered, TosaProgram)
    return lowered


def _as_compilers_take_it(program: ExportedProgram) -> ExportedProgram:
    return round_before_clamps(decompose_dynamic(program))


def _no_loops(backend: str) -> str:
    return (
        f"{backend} cannot execute torch.while_loop here: ExecuTorch's runtime has "
        "conditionals and no loops. Only the NPU program of an Ethos-U85 can hold one, quantized "
        "throughout and without weights in its bodies. Repeat the body as often as it runs at "
        "most, with torch.cond where it may stop."
    )


def _without_control_flow(compile_spec: Any) -> Any:
    changed = copy.copy(compile_spec)
    extensions = [part for part in str(compile_spec.tosa_spec).split("+") if part != "cf"]
    changed.tosa_spec = type(compile_spec.tosa_spec).create_from_string("+".join(extensions))
    return changed


def _with_unsigned_io(program: ExportedProgram, compile_spec: Any) -> Any:
    """Keep the quantizing of uint8 inputs and outputs out of delegates that also compute in float.

    TOSA has no uint8 but at the boundary of a graph: inside one, ExecuTorch's conversion takes
    the same bits for int8.
    """
    spec = compile_spec.tosa_spec
    if not (spec.support_float() and spec.support_integer() and _has_unsigned(program)):
        return compile_spec
    return copy.copy(compile_spec)._set_preserve_io_quantization(True)


def _has_unsigned(program: ExportedProgram) -> bool:
    return any(
        node.op == "call_function" and torch.uint8 in (*node.args, *node.kwargs.values())
        for module in program.graph_module.modules()
        if isinstance(module, GraphModule)
        for node in module.graph.nodes
    )


def _partitioner(target: type[TosaLowering], compile_spec: Any, *, bodies: bool) -> Any:
    module, _, name = target.partitioner.partition(":")
    base: Any = getattr(import_executorch(module), name)
    PARTITIONER.checked()
    why = import_executorch("executorch.exir.backend.utils").WhyNoPartition(_LOGGER)

    class Reporting(base):  # type: ignore[misc]
        """The partitioner; states its reasons where the core collects them."""

        def _tag_module(self, module: Any, containing_program: Any, *args: Any) -> Any:
            if module is not containing_program.graph_module and not bodies:
                return set()
            tags = super()._tag_module(module, containing_program, *args)
            if target.constants:
                return tags
            return tags - _untag_constants(module, containing_program, tags)

        def partition(self, exported_program: Any) -> Any:
            with noted_rejections() as rejected:
                result = super().partition(exported_program)
            for node, reason in rejected.items():
                why(node, _SCHEMA.sub(r"\1", reason))
            return result

    return Reporting(compile_spec, [_computed_right()])


def _untag_constants(module: GraphModule, program: ExportedProgram, tags: set[str]) -> set[str]:
    """Take constants out of delegates that give nothing else, and return the tags of these."""
    outer = module is program.graph_module
    given = module.graph.find_nodes(op="placeholder")
    names = program.graph_signature.user_inputs
    varying = depending_on(node for node in given if not outer or node.name in names)
    results = defaultdict(set)
    for node in module.graph.nodes:
        tag = node.meta.get(DELEGATION_TAG)
        if any(user.meta.get(DELEGATION_TAG) != tag for user in node.users):
            results[tag].add(node)
    constant = {tag for tag in tags if not results[tag] & varying}
    for node in module.graph.nodes:
        if node.meta.get(DELEGATION_TAG) in constant:
            del node.meta[DELEGATION_TAG]
    return constant


def _computed_right() -> Any:
    """Keep out of the delegates what ExecuTorch computes wrongly in them.

    Quantized, these have another form; see :mod:`qcore_tosa.forms`.
    """
    from torch.fx.passes.operator_support import OperatorSupportBase

    why = import_executorch("executorch.exir.backend.utils").WhyNoPartition(_LOGGER)

    class ComputedRight(OperatorSupportBase):  # type: ignore[misc]
        def is_node_supported(self, submodules: Any, node: Any) -> bool:
            reason = miscomputed(node)
            if reason is not None:
                why(node, reason)
            return reason is None

    return ComputedRight()
