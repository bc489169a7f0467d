"""The TOSA backend, and what the hooks mean for every Arm target: VGF and Ethos-U build on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, evolve
from torch.fx import GraphModule

import qcore
from qcore.annotation import annotate_graph, annotation_of
from qcore.errors import CaptureError, UnsupportedSchemeError
from qcore_executorch import STAGES, ExecuTorchReport
from qcore_executorch.inspection import as_written
from qcore_tosa.compile_spec import as_compile_spec
from qcore_tosa.control_flow import annotate_control_flow
from qcore_tosa.limits import dynamic_size
from qcore_tosa.marks import mark_quantized
from qcore_tosa.positions import is_argmax
from qcore_tosa.reference import runner_of
from qcore_tosa.schemes import DYNAMIC, INT8, INT16
from qcore_tosa.support import TABLE
from qcore_tosa.transforms import decompose

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from qcore.lowering import LoweredProgram, Saved
    from qcore.plan import QuantizationPlan
    from qcore.report import AnnotationReport
    from qcore.schemes import QuantizationScheme

__all__ = ["TosaBackend"]


@define
class TosaBackend:
    """Int8, 16x8 and float as TOSA graphs, executed by Arm's reference model.

    Attributes:
        compile_spec: A TOSA specification or its string, such as ``"TOSA-1.0+INT"``; any of
            ExecuTorch's Arm compile specs where a device's backend builds on this one.
    """

    name: ClassVar[str] = "tosa"
    api_version: ClassVar[int] = 2
    stages: ClassVar[Mapping[str, float]] = STAGES
    conformance: ClassVar[Mapping[str, Any]] = {
        "dynamic_shapes": False,
        "lowers_operators": False,
        "wide_ranges": False,
    }

    compile_spec: Any = "TOSA-1.0+FP+INT"

    def __attrs_post_init__(self) -> None:
        self.compile_spec = as_compile_spec(self.compile_spec)

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """8a8w with TOSA's integers; 16a8w with its extension ``int16``, 8da8w with float."""
        spec = self.compile_spec.tosa_spec
        if not spec.support_integer():
            raise UnsupportedSchemeError(
                f"{spec} computes in float alone, so nothing is quantized for it. Take a "
                "specification with integers, such as 'TOSA-1.0+FP+INT'."
            )
        dynamic = DYNAMIC if spec.support_float() else ()
        return (*INT8, *(INT16 if spec.support_extension("int16") else ()), *dynamic)

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Decompose what will be quantized; make its scalars tensors."""
        if varies := dynamic_size(model.graph, self.name):
            raise CaptureError(varies)
        return decompose(model, plan, self.compile_spec)

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Apply the support table, and mark for the partitioner what is quantized."""
        annotate_control_flow(model, plan)
        report = annotate_graph(model, plan, TABLE, self.name)
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            decision = report.by_node.get(node.name)
            # The cast of positions that the passes insert belongs to what gives them.
            source = node.args[0] if node.args and is_argmax(node.args[0]) else node
            quantized = decision.is_quantized if decision else annotation_of(source) is not None
            mark_quantized(node, quantized)
        # The passes insert casts of ExecuTorch's own.
        named = (evolve(d, operator=as_written(d.operator)) for d in report.decisions)
        return evolve(report, decisions=tuple(named))

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Delegate to TOSA what it takes."""
        from qcore_tosa.lowering import lower_to_tosa

        return lower_to_tosa(program, self.compile_spec, **options)

    @staticmethod
    def loaded(program: LoweredProgram, saved: Saved) -> LoweredProgram:
        """Give a program from a file its report, and what executes it."""
        from qcore_tosa.program import TosaProgram

        report = saved.report_as(ExecuTorchReport, program)
        return TosaProgram.of(program, runner=runner_of(saved), report=report)
