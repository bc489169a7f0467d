"""What became of a model on Ethos-U."""

from __future__ import annotations

from typing import Final

import attrs

from qcore.report import figure, notes
from qcore_ethosu.vela import VelaFigures
from qcore_executorch import ExecuTorchReport

__all__ = ["EXECUTION", "EthosUReport"]

EXECUTION: Final = (
    "run() executes the TOSA graph on Arm's TOSA reference model, with integer semantics; Vela's "
    "command stream needs the device"
)
"""How a program for Ethos-U is executed on a host."""


@attrs.frozen
class EthosUReport(ExecuTorchReport):
    """What was delegated, and what Vela made of it.

    The figures of several delegates add up, for they run one after the other; the SRAM that they
    share is that of the largest.

    Attributes:
        vela: Vela's figures of each delegate.
        execution: How ``program.run`` executes the program.
    """

    vela: tuple[VelaFigures, ...] = ()
    execution: str = EXECUTION

    @figure
    def npu_operators(self) -> int:
        """Operators on the NPU, after fusing."""
        return sum(figures.npu_operators for figures in self.vela)

    @figure
    def cpu_operators(self) -> int:
        """Operators left to the CPU, by Vela or by the partitioner.

        Quantizing the model's inputs and dequantizing its outputs is not counted; see ``stray``.
        """
        return len(self.undelegated) + sum(figures.cpu_operators for figures in self.vela)

    @figure
    def macs(self) -> int:
        """Multiply-accumulate operations of one inference."""
        return sum(figures.macs for figures in self.vela)

    @figure
    def npu_cycles(self) -> int:
        """Cycles the NPU computes, as Vela estimates them."""
        return sum(figures.npu_cycles for figures in self.vela)

    @figure
    def total_cycles(self) -> int:
        """Cycles of one inference with waiting for memory, as Vela estimates them."""
        return sum(figures.total_cycles for figures in self.vela)

    @figure
    def sram_bytes(self) -> int:
        """Peak use of SRAM in bytes: the largest of the delegates, which share it."""
        return max((figures.sram_bytes for figures in self.vela), default=0)

    @figure
    def dram_bytes(self) -> int:
        """Use of DRAM in bytes, by weights or tensors, as the memory mode has it."""
        return sum(figures.memory_bytes.get("dram", 0) for figures in self.vela)

    @figure
    def flash_bytes(self) -> int:
        """Use of flash in bytes."""
        return sum(figures.flash_bytes for figures in self.vela)

    @figure
    def inferences_per_second(self) -> float:
        """How often a second the NPU's part runs, as Vela estimates it; 0 without a delegate."""
        seconds = sum(figures.total_cycles / figures.core_clock_hz for figures in self.vela)
        return 1 / seconds if seconds else 0.0


@notes.register
def _(report: EthosUReport) -> tuple[str, ...]:
    said = (report.execution, *notes.dispatch(ExecuTorchReport)(report))
    if not report.vela:
        return said
    first = report.vela[0]
    used = {"SRAM": report.sram_bytes, "DRAM": report.dram_bytes, "flash": report.flash_bytes}
    memory = [f"{name} {size / 1024:.1f} KiB" for name, size in used.items() if size]
    return (
        f"Vela, {first.accelerator}, {first.system_config}, {first.memory_mode}: "
        f"{report.npu_operators} operators on the NPU, {report.cpu_operators} on the CPU",
        f"{', '.join(memory)}, {report.macs / 1e6:.2f} M MACs, {report.total_cycles} cycles, "
        f"{report.inferences_per_second:.1f} inferences/s (estimates)",
        *said,
    )
