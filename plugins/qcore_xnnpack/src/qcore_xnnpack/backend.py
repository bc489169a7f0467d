"""The XNNPACK backend: what the core's hooks mean for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define

import qcore
from qcore.annotation import annotate_graph, scalars_to_attributes
from qcore.annotation.forms import in_quantizable_forms
from qcore_executorch import STAGES
from qcore_executorch.clamps import clamps_to_hardtanh
from qcore_xnnpack.forms import XNNPACK_FORMS
from qcore_xnnpack.support import SCALAR_OPERATORS, SCHEMES, TABLE

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from qcore.lowering import LoweredProgram
    from qcore.plan import QuantizationPlan
    from qcore.report import AnnotationReport
    from qcore.schemes import QuantizationScheme

__all__ = ["XnnpackBackend"]


@define
class XnnpackBackend:
    """Int8 on CPUs through ExecuTorch's XNNPACK delegate; takes no options."""

    name: ClassVar[str] = "xnnpack"
    api_version: ClassVar[int] = 2
    stages: ClassVar[Mapping[str, float]] = STAGES
    conformance: ClassVar[Mapping[str, Any]] = {
        "leaves_out_models": {
            "shared_weights": "XNNPACK scales the bias of a shared layer for one of its calls; the "
            "check of programs leaves the others to portable kernels, a lowering for each guess",
        },
        "leaves_out_schemes": {
            "8da8w": "the runtime loads no delegate with certain pairs of dynamic convolutions, so "
            "the check of programs leaves one to portable kernels, a lowering for each guess",
        },
    }

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """8a8w in the PT2E flow; 8da4w, 8da8w and embeddings by ``qcore.quantize_``."""
        return SCHEMES

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Bring the operators into the forms that XNNPACK takes; make scalars tensors."""
        clamps_to_hardtanh(model, plan)
        in_quantizable_forms(model, plan, TABLE, XNNPACK_FORMS)
        return scalars_to_attributes(model, plan, SCALAR_OPERATORS)

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Apply the support table."""
        return annotate_graph(model, plan, TABLE, self.name)

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Delegate to XNNPACK what it takes; the rest runs on portable kernels."""
        from qcore_xnnpack.lowering import lower_to_xnnpack

        return lower_to_xnnpack(program, **options)
