"""The Vulkan backend: what the core's hooks mean for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define

import qcore
from qcore.annotation import annotate_graph
from qcore_executorch import STAGES, restored
from qcore_vulkan.support import SCHEMES, TABLE

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from qcore.lowering import LoweredProgram, Saved
    from qcore.plan import QuantizationPlan
    from qcore.report import AnnotationReport
    from qcore.schemes import QuantizationScheme

__all__ = ["VulkanBackend"]


@define
class VulkanBackend:
    """Linear layers with 8- and 4-bit weights on GPUs through ExecuTorch's Vulkan delegate."""

    name: ClassVar[str] = "vulkan"
    api_version: ClassVar[int] = 2
    stages: ClassVar[Mapping[str, float]] = STAGES
    conformance: ClassVar[Mapping[str, Any]] = {"runs": False, "verifies": True}

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """8w and 4w per channel in the PT2E flow; 8da4w and 4w per group by ``qcore.quantize_``."""
        return SCHEMES

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Annotate linear layers; everything else stays in the model's own type."""
        return annotate_graph(model, plan, TABLE, self.name)

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Delegate to Vulkan what it takes; the rest runs on portable kernels."""
        from qcore_vulkan.lowering import lower_to_vulkan

        return lower_to_vulkan(program, **options)

    @staticmethod
    def loaded(program: LoweredProgram, saved: Saved) -> LoweredProgram:
        """Say of a program from a file, too, that it runs on a device only; give it its report."""
        from qcore_vulkan.lowering import NO_RUNTIME, VulkanProgram

        return VulkanProgram.of(restored(program, saved), runner=NO_RUNTIME)
