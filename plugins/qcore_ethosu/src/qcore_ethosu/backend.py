"""The Ethos-U backend: what the core's hooks mean for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import define, field

import qcore
from qcore.errors import QcoreError
from qcore.report import Diagnostic
from qcore_ethosu.positions import return_int32
from qcore_ethosu.support import unsupported_nodes
from qcore_executorch import import_executorch
from qcore_tosa import TosaBackend, check_compile_spec
from qcore_tosa.reference import runner_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from qcore.lowering import LoweredProgram, Saved
    from qcore.plan import QuantizationPlan
    from qcore.report import AnnotationReport

__all__ = ["EthosUBackend"]

#: The accelerators that Vela 5 compiles for.
TARGETS: Final = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)


@define
class EthosUBackend(TosaBackend):
    """Int8 and 16x8 on Arm's Ethos-U NPUs, through ExecuTorch and Vela.

    Attributes:
        compile_spec: ExecuTorch's ``EthosUCompileSpec``; by default one of the other options.
        target: The accelerator and its multipliers, such as ``"ethos-u85-256"``.
        system_config: A system configuration of Vela's configuration file; by default ExecuTorch's
            choice for the target.
        memory_mode: A memory mode of that file; by default ExecuTorch's choice for the target.
        extra_flags: More options for Vela.
        config_ini: Vela's configuration file; by default its own.
        allow_cpu: Whether what the NPU lacks, and what rules leave in float, may stay in the
            program, for ExecuTorch's kernels on the CPU.
    """

    name: ClassVar[str] = "ethosu"
    conformance: ClassVar[Mapping[str, Any]] = {
        "options": {"target": "ethos-u85-256"},
        "partial": False,
        "dynamic_shapes": False,
        "lowers_operators": False,
        "wide_ranges": False,
    }

    compile_spec: Any = None
    target: str | None = field(default=None, kw_only=True)
    system_config: str | None = field(default=None, kw_only=True)
    memory_mode: str | None = field(default=None, kw_only=True)
    extra_flags: Sequence[str] = field(default=(), kw_only=True)
    config_ini: str | None = field(default=None, kw_only=True)
    allow_cpu: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        specs = import_executorch("executorch.backends.arm.ethosu")
        options = (self.system_config, self.memory_mode, self.config_ini, *self.extra_flags)
        if self.compile_spec is None:
            self.target = _checked(self.target)
            self.compile_spec = specs.EthosUCompileSpec(
                self.target,
                self.system_config,
                self.memory_mode,
                list(self.extra_flags),
                self.config_ini,
            )
        else:
            check_compile_spec(
                self.name,
                self.compile_spec,
                specs.EthosUCompileSpec,
                "Pass qcore_ethosu.EthosUCompileSpec('ethos-u85-256'), or target='ethos-u85-256'.",
                (self.target, *options),
            )
            self.target = self.compile_spec.target

    @property
    def partial_quantization(self) -> bool:
        """Whether rules may leave parts in float."""
        return self.allow_cpu

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Decompose as for TOSA; return in 32 bits what the NPU would have to give in 64."""
        model = super().transform_for_annotation(model, plan)
        if not self.allow_cpu:
            return_int32(model)
        return model

    @qcore.hookimpl
    def validate_partial(
        self, model: GraphModule, plan: QuantizationPlan, report: AnnotationReport
    ) -> Sequence[Diagnostic]:
        """Refuse what would stay in float and what the NPU lacks, unless the CPU may take it."""
        if self.allow_cpu:
            return ()
        return unsupported_nodes(model, report, str(self.target))

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Compile the model with Vela."""
        from qcore_ethosu.lowering import lower_to_ethosu

        return lower_to_ethosu(
            program, self.compile_spec, **{"allow_cpu": self.allow_cpu, **options}
        )

    @staticmethod
    def loaded(program: LoweredProgram, saved: Saved) -> LoweredProgram:
        """Give a program from a file its report, and what executes it."""
        from qcore_ethosu.program import EthosUProgram
        from qcore_ethosu.report import EthosUReport

        return EthosUProgram.of(
            program,
            runner=runner_of(saved),
            report=saved.report_as(EthosUReport, program),
        )


def _checked(target: str | None) -> str:
    known = f"It knows: {', '.join(TARGETS)}."
    if target is None:
        raise QcoreError(
            "ethosu needs to know the accelerator: pass target='ethos-u85-256', for example. "
            f"{known}"
        )
    if target not in TARGETS:
        raise QcoreError(f"ethosu knows no accelerator {target!r}. {known}")
    return target
