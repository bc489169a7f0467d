"""Lowering to ExecuTorch's Ethos-U delegate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, check_options
from qcore_ethosu.compat.executorch import COMPILER
from qcore_ethosu.program import EthosUProgram
from qcore_ethosu.report import EthosUReport
from qcore_ethosu.vela import compile_with_vela, require_vela
from qcore_tosa.artifacts import Compilation
from qcore_tosa.lowering import TosaLowering

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["EthosULowering", "lower_to_ethosu"]

_OPTIONS: Final = ("allow_cpu", "check", "timeout_s")


@attrs.define
class EthosULowering(TosaLowering):
    """ExecuTorch's lowering to Ethos-U, by Vela.

    Attributes:
        allow_cpu: Whether operators that the NPU lacks may stay in the program.
    """

    partitioner = "executorch.backends.arm.ethosu.partitioner:EthosUPartitioner"
    compiler = COMPILER
    program_type = EthosUProgram

    allow_cpu: bool = attrs.field(default=False, kw_only=True)

    def compiled(self, compile_: Callable[..., bytes], *args: Any, **kwargs: Any) -> Compilation:
        """Compile a TOSA graph with Vela."""
        return compile_with_vela(compile_, *args, **kwargs)

    def lower(self, program: ExportedProgram) -> LoweredProgram:
        """Lower a model, and refuse what the NPU would leave to the CPU."""
        lowered = super().lower(program)
        assert isinstance(lowered.report, EthosUReport)
        if not self.allow_cpu:
            _require_npu(lowered.report, self.compile_spec.target)
        return lowered

    def program(self, lowered: LoweredProgram) -> LoweredProgram:
        """Add Vela's figures."""
        complete = super().program(lowered)
        assert isinstance(complete, EthosUProgram)
        fields = attrs.asdict(lowered.report, recurse=False)
        vela = tuple(delegate.compilation.figures for delegate in complete.delegates)
        return attrs.evolve(complete, report=EthosUReport(**fields, vela=vela))


def lower_to_ethosu(program: ExportedProgram, compile_spec: Any, **options: Any) -> EthosUProgram:
    """Compile a model with Vela.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``EthosUCompileSpec``.
        **options: ``allow_cpu``, whether operators that the NPU lacks may stay in the program, for
            ExecuTorch's kernels on the CPU (default: False); ``check=False`` leaves out executing
            the program once, on the reference model; ``timeout_s``, the seconds that one run of a
            graph there may take (default: 600).

    Returns:
        The program, with Vela's figures in its report.

    Raises:
        LoweringError: An option is unknown, a shape is dynamic, operators would be left to the CPU,
            or ExecuTorch or Vela cannot compile.
        RuntimeUnavailableError: ExecuTorch or Vela is not installed.
    """
    check_options("ethosu", options, _OPTIONS)
    require_vela()
    options = {"check": True, **options}
    lowered = EthosULowering("ethosu", compile_spec=compile_spec, **options).lower(program)
    assert isinstance(lowered, EthosUProgram)
    return lowered


def _require_npu(report: EthosUReport, target: str) -> None:
    if report.mended:
        nodes = "\n".join(f"  {node}" for node in report.mended)
        raise LoweringError(
            f"With these operators the program for {target} is not made, or computes something "
            f"else than the quantized model:\n{nodes}\nReplace them by other operators, move them "
            "out of the model, or lower with allow_cpu=True to run them on the CPU."
        )
    if report.undelegated:
        nodes = "\n".join(f"  {node}" for node in report.undelegated)
        raise LoweringError(
            f"{target} cannot execute {len(report.undelegated)} operators of the model:\n{nodes}\n"
            "Quantize them, replace them by operators that the NPU has, move them out of the "
            "model, or lower with allow_cpu=True to run them on the CPU."
        )
