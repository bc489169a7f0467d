"""Lowering by way of TOSA, shared by the backends whose compilers take it."""

from __future__ import annotations

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch
from torch.fx import GraphModule, Node

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, import_executorch, lower_with_partitioner
from qcore.patching import LIBRARIES
from qcore_tosa.artifacts import Compilation, delegates_of, recorded_compilations
from qcore_tosa.bodies import has_bodies, has_loops, passes_constants, put_back
from qcore_tosa.compile_spec import check_compile_spec
from qcore_tosa.dynamic import decompose_dynamic
from qcore_tosa.limits import miscomputed
from qcore_tosa.mends import mended_passes
from qcore_tosa.program import TosaProgram

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from qcore.lowering import Runner

__all__ = ["Target", "check_options", "lower_by_tosa", "lower_to_tosa"]

# Below "executorch", where the core collects the reasons that partitioners state.
_LOGGER = logging.getLogger("executorch.backends.qcore_tosa")

# Operators that take a tensor for its shape.
_SHAPE_ONLY = re.compile(r"\baten\.(\w+_like|new_\w+)\b")

# Where partitioners note the delegate of a node.
_TAG = "delegation_tag"

# An operator in a reason, printed with its schema.
_SCHEMA = re.compile(r"<EdgeOpOverload: ([^>]+)>: schema = .*")

Program = TypeVar("Program", bound=TosaProgram)


@attrs.frozen
class Target:
    """A backend of ExecuTorch that compiles TOSA.

    Attributes:
        name: qcore's name of the backend.
        partitioner: ExecuTorch's partitioner class, as ``module:class``.
        compiler: The function that compiles a TOSA graph, as ``module:function``, where the
            backend looks it up; empty where the TOSA graph itself is what is wanted.
        compile: Takes that function and its arguments, and compiles.
        constants: Whether it computes graphs that read nothing.
        control_flow: Whether the compiler takes conditionals and loops, where the compile
            specification has TOSA's extension for them.
    """

    name: str
    partitioner: str
    compiler: str = ""
    compile: Callable[..., Compilation] | None = None
    control_flow: bool = True
    constants: bool = True


def check_options(backend: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that a backend's ``lower`` does not have.

    Args:
        backend: The backend's name.
        options: What the user passed.
        known: The names that exist.

    Raises:
        LoweringError: Naming the options that do not exist and those that do.
    """
    unknown = [option for option in options if option not in known]
    if unknown:
        raise LoweringError(
            f"{backend}'s lower has no option {', '.join(map(repr, unknown))}. "
            f"Its options: {', '.join(known)}."
        )


def lower_by_tosa(
    program: ExportedProgram,
    compile_spec: Any,
    target: Target,
    program_type: type[Program],
    runner: Runner | None,
) -> Program:
    """Delegate what the compiler takes; the rest runs on portable kernels.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's compile specification of the target.
        target: The backend.
        program_type: The class of the program.
        runner: Executes the program on this machine; None where no host can.

    Returns:
        The program, with the TOSA graphs of its delegates.

    Raises:
        LoweringError: ExecuTorch or the compiler cannot lower the model.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    _require_fixed_shapes(program, target.name)
    compile_spec = _with_unsigned_io(program, compile_spec)
    kept: list[Any] = []
    with (
        _quiet_backend(),
        mended_passes(),
        _recorded(target) as compilations,
    ):
        lowered = lower_with_partitioner(
            program,
            None,
            backend=target.name,
            partitioners=[],
            runner=runner,
            partition=lambda exported: _partitioned(exported, compile_spec, target),
            on_partitioned=kept.append,
        )
    fields = {f.name: getattr(lowered, f.name) for f in attrs.fields(LoweredProgram)}
    delegates = delegates_of(kept[0], compilations)
    return program_type(**fields, partitioned=kept[0], delegates=delegates)


def _recorded(target: Target) -> AbstractContextManager[dict[bytes, Compilation]]:
    if target.compile is None:
        return nullcontext({})
    module, _, function = target.compiler.partition(":")
    return recorded_compilations(import_executorch(module), function, target.compile)


def lower_to_tosa(program: ExportedProgram, compile_spec: Any, **options: Any) -> TosaProgram:
    """Lower a model to TOSA graphs, which the reference model executes and no device does.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``TosaCompileSpec``.
        **options: ``timeout_s``, the seconds that one run of a graph on the reference model may
            take (default: 600).

    Returns:
        The program.

    Raises:
        LoweringError: An option is unknown, a shape is dynamic, or ExecuTorch cannot lower the
            model.
        QcoreError: The compile specification is a device's.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    check_options("tosa", options, ("timeout_s",))
    specs = import_executorch("executorch.backends.arm.tosa.compile_spec")
    advice = "Lower with that backend's quantizer, or pass the specification 'TOSA-1.0+INT'."
    check_compile_spec("tosa", compile_spec, specs.TosaCompileSpec, advice)
    target = Target("tosa", "executorch.backends.arm.tosa.partitioner:TOSAPartitioner")
    lowered = lower_by_tosa(program, compile_spec, target, TosaProgram, None)
    return lowered.on_reference_model(**options)


def _partitioned(exported: ExportedProgram, compile_spec: Any, target: Target) -> Any:
    """Delegate what the compiler takes, and lower bodies apart where it does not take them."""
    exir = import_executorch("executorch.exir")
    exported = decompose_dynamic(exported)
    whole = target.control_flow and compile_spec.tosa_spec.support_extension("cf")
    loops = has_loops(exported)
    if loops and not whole:
        raise LoweringError(_no_loops(target))
    apart = has_bodies(exported) and not loops and (not whole or passes_constants(exported))
    spec = _without_control_flow(compile_spec) if apart else compile_spec
    edge = exir.to_edge_transform_and_lower(
        exported,
        partitioner=[_partitioner(target, spec, bodies=not apart)],
        compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
    )
    if loops and has_loops(edge.exported_program()):
        raise LoweringError(_no_loops(target))
    if apart:
        put_back(edge, exported, lambda body: _partitioned(body, compile_spec, target))
    return edge


def _no_loops(target: Target) -> str:
    return (
        f"{target.name} cannot execute torch.while_loop here: ExecuTorch's runtime has "
        "conditionals and no loops. Only the NPU program of an Ethos-U85 can hold one, quantized "
        "throughout and without weights in its bodies. Repeat the body as often as it runs at "
        "most, with torch.cond where it may stop."
    )


def _without_control_flow(compile_spec: Any) -> Any:
    changed = copy.copy(compile_spec)
    extensions = [part for part in str(compile_spec.tosa_spec).split("+") if part != "cf"]
    changed.tosa_spec = type(compile_spec.tosa_spec).create_from_string("+".join(extensions))
    return changed


def _require_fixed_shapes(program: ExportedProgram, backend: str) -> None:
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        for index, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if not isinstance(size, int):
                raise LoweringError(
                    f"{backend} compiles for fixed shapes: dimension {index} of {node.name!r} is "
                    "dynamic. Capture the model without dynamic_shapes, once for each size."
                )


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


def _partitioner(target: Target, compile_spec: Any, *, bodies: bool) -> Any:
    module, _, name = target.partitioner.partition(":")
    base: Any = getattr(import_executorch(module), name)
    why = import_executorch("executorch.exir.backend.utils").WhyNoPartition(_LOGGER)

    class Reporting(base):  # type: ignore[misc]
        """The partitioner; states its reasons where the core collects them."""

        def _create_operator_support(self, containing_program: Any, reporter: Any) -> Any:
            self.reporter = reporter
            return super()._create_operator_support(containing_program, reporter)

        def _tag_module(self, module: Any, containing_program: Any, *args: Any) -> Any:
            if module is not containing_program.graph_module and not bodies:
                return set()
            tags = super()._tag_module(module, containing_program, *args)
            if target.constants:
                return tags
            return tags - _untag_constants(module, containing_program, tags)

        def partition(self, exported_program: Any) -> Any:
            result = super().partition(exported_program)
            for node, reason in self.reporter._rejected_nodes.items():
                why(node, _SCHEMA.sub(r"\1", reason))
            return result

    return Reporting(compile_spec, [_computed_right()])


def _untag_constants(module: GraphModule, program: ExportedProgram, tags: set[str]) -> set[str]:
    """Take constants out of delegates that give nothing else, and return the tags of these."""
    outer = module is program.graph_module
    varying: set[Node] = set()
    for node in module.graph.nodes:
        is_input = not outer or node.name in program.graph_signature.user_inputs
        reads = not _SHAPE_ONLY.search(str(node.target)) and varying & set(node.all_input_nodes)
        if reads or (node.op == "placeholder" and is_input):
            varying.add(node)
    results = defaultdict(set)
    for node in module.graph.nodes:
        tag = node.meta.get(_TAG)
        if any(user.meta.get(_TAG) != tag for user in node.users):
            results[tag].add(node)
    constant = {tag for tag in tags if not results[tag] & varying}
    for node in module.graph.nodes:
        if node.meta.get(_TAG) in constant:
            del node.meta[_TAG]
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


@contextmanager
def _quiet_backend() -> Iterator[None]:
    # The core sets ExecuTorch's loggers to "debug" to hear of reasons. At "info" the backend dumps
    # tables and makes its compilers verbose.
    logger = logging.getLogger("executorch.backends.arm")
    with LIBRARIES:
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
