"""What became of a model on Ethos-U."""

from __future__ import annotations

from typing import Any, Final

import attrs

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

    @property
    def npu_operators(self) -> int:
        """Operators on the NPU, after fusing."""
        return sum(figures.npu_operators for figures in self.vela)

    @property
    def cpu_operators(self) -> int:
        """Operators left to the CPU, by Vela or by the partitioner.

        Quantizing the model's inputs and dequantizing its outputs is not counted; see ``stray``.
        """
        return len(self.undelegated) + sum(figures.cpu_operators for figures in self.vela)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one inference."""
        return sum(figures.macs for figures in self.vela)

    @property
    def npu_cycles(self) -> int:
        """Cycles the NPU computes, as Vela estimates them."""
        return sum(figures.npu_cycles for figures in self.vela)

    @property
    def total_cycles(self) -> int:
        """Cycles of one inference with waiting for memory, as Vela estimates them."""
        return sum(figures.total_cycles for figures in self.vela)

    @property
    def sram_bytes(self) -> int:
        """Peak use of SRAM in bytes: the largest of the delegates, which share it."""
        return max((figures.sram_bytes for figures in self.vela), default=0)

    @property
    def dram_bytes(self) -> int:
        """Use of DRAM in bytes, by weights or tensors, as the memory mode has it."""
        return sum(figures.memory_bytes.get("dram", 0) for figures in self.vela)

    @property
    def flash_bytes(self) -> int:
        """Use of flash in bytes."""
        return sum(figures.flash_bytes for figures in self.vela)

    @property
    def inferences_per_second(self) -> float:
        """How often a second the NPU's part runs, as Vela estimates it; 0 without a delegate."""
        seconds = sum(figures.total_cycles / figures.core_clock_hz for figures in self.vela)
        return 1 / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data.

        Returns:
            A dictionary of strings, numbers, lists and dictionaries.
        """
        totals = {name: getattr(self, name) for name in _TOTALS}
        vela = [attrs.asdict(figures) for figures in self.vela]
        return {**super().to_dict(), **totals, "vela": vela, "execution": self.execution}

    @property
    def notes(self) -> tuple[str, ...]:
        """Vela's figures, and how the program is executed here."""
        if not self.vela:
            return (self.execution,)
        first = self.vela[0]
        used = {"SRAM": self.sram_bytes, "DRAM": self.dram_bytes, "flash": self.flash_bytes}
        memory = [f"{name} {size / 1024:.1f} KiB" for name, size in used.items() if size]
        return (
            f"Vela, {first.accelerator}, {first.system_config}, {first.memory_mode}: "
            f"{self.npu_operators} operators on the NPU, {self.cpu_operators} on the CPU",
            f"{', '.join(memory)}, {self.macs / 1e6:.2f} M MACs, {self.total_cycles} cycles, "
            f"{self.inferences_per_second:.1f} inferences/s (estimates)",
            self.execution,
        )


_TOTALS: Final = (
    "npu_operators",
    "cpu_operators",
    "macs",
    "npu_cycles",
    "total_cycles",
    "sram_bytes",
    "dram_bytes",
    "flash_bytes",
    "inferences_per_second",
)
