"""The VGF backend: what the core's hooks mean for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field

import qcore
from qcore_executorch import ExecuTorchReport, import_executorch, restored
from qcore_tosa import TosaBackend, check_compile_spec, tosa_specification
from qcore_tosa.reference import runner_of
from qcore_vgf.compat.executorch import require_runtime

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from qcore.lowering import LoweredProgram, Saved

__all__ = ["VgfBackend"]


@define
class VgfBackend(TosaBackend):
    """Int8 and float on GPUs through Arm's ML extensions for Vulkan.

    Attributes:
        compile_spec: ExecuTorch's ``VgfCompileSpec``; by default one of the other two options.
        tosa_spec: The TOSA specification, such as ``"TOSA-1.0+FP+INT"``; by default ExecuTorch's.
        compiler_flags: Flags for Arm's model converter.
    """

    name: ClassVar[str] = "vgf"
    conformance: ClassVar[Mapping[str, Any]] = {
        "run_options": {"reference": True},
        "dynamic_shapes": False,
        "lowers_operators": False,
        "wide_ranges": False,
    }

    compile_spec: Any = None
    tosa_spec: str | None = field(default=None, kw_only=True)
    compiler_flags: Sequence[str] = field(default=(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_runtime()
        specs = import_executorch("executorch.backends.arm.vgf")
        if self.compile_spec is None:
            spec = None if self.tosa_spec is None else tosa_specification(self.tosa_spec)
            self.compile_spec = specs.VgfCompileSpec(spec, list(self.compiler_flags))
        else:
            check_compile_spec(
                self.name,
                self.compile_spec,
                specs.VgfCompileSpec,
                "Pass qcore_vgf.VgfCompileSpec(), or leave it out.",
                (self.tosa_spec, self.compiler_flags),
            )

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Delegate to VGF what it takes; the rest runs on portable kernels."""
        from qcore_vgf.lowering import lower_to_vgf

        return lower_to_vgf(program, self.compile_spec, **options)

    @staticmethod
    def loaded(program: LoweredProgram, saved: Saved) -> LoweredProgram:
        """Give a program from a file its runner, which sets Vulkan up, and its report."""
        from qcore_vgf.program import VgfProgram
        from qcore_vgf.runner import VgfRunner

        if "graphs" in saved.needs:  # It was executed on the reference model.
            report = saved.report_as(ExecuTorchReport, program)
            return VgfProgram.of(program, runner=runner_of(saved), report=report)
        return VgfProgram.of(restored(program, saved, runner=VgfRunner))
