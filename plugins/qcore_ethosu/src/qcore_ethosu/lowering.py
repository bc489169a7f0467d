"""Lowering to ExecuTorch's Ethos-U delegate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from qcore.errors import LoweringError
from qcore.lowering import LoweringReport
from qcore_ethosu.program import EthosUProgram
from qcore_ethosu.report import EthosUReport
from qcore_ethosu.vela import compile_with_vela, require_vela
from qcore_tosa.lowering import Target, check_options, lower_by_tosa

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lower_to_ethosu"]

_OPTIONS: Final = ("allow_cpu", "timeout_s")


def lower_to_ethosu(program: ExportedProgram, compile_spec: Any, **options: Any) -> EthosUProgram:
    """Compile a model with Vela.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``EthosUCompileSpec``.
        **options: ``allow_cpu``, whether operators that the NPU lacks may stay in the program, for
            ExecuTorch's kernels on the CPU (default: False); ``timeout_s``, the seconds that one
            run of a graph on the reference model may take (default: 600).

    Returns:
        The program, with Vela's figures in its report.

    Raises:
        LoweringError: An option is unknown, a shape is dynamic, operators would be left to the CPU,
            or ExecuTorch or Vela cannot compile.
        RuntimeUnavailableError: ExecuTorch or Vela is not installed.
    """
    check_options("ethosu", options, _OPTIONS)
    require_vela()
    target = Target(
        name="ethosu",
        partitioner="executorch.backends.arm.ethosu.partitioner:EthosUPartitioner",
        compiler="executorch.backends.arm.ethosu.backend:vela_compile",
        compile=compile_with_vela,
    )
    lowered = lower_by_tosa(program, compile_spec, target, EthosUProgram, None)
    if not options.pop("allow_cpu", False):
        _require_npu(lowered.report, compile_spec.target)
    fields = {f.name: getattr(lowered.report, f.name) for f in attrs.fields(LoweringReport)}
    vela = tuple(delegate.compilation.figures for delegate in lowered.delegates)
    complete = attrs.evolve(lowered, report=EthosUReport(**fields, vela=vela))
    return complete.on_reference_model(**options)


def _require_npu(report: LoweringReport, target: str) -> None:
    if report.undelegated:
        nodes = "\n".join(f"  {node}" for node in report.undelegated)
        raise LoweringError(
            f"{target} cannot execute {len(report.undelegated)} operators of the model:\n{nodes}\n"
            "Quantize them, replace them by operators that the NPU has, move them out of the "
            "model, or lower with allow_cpu=True to run them on the CPU."
        )
