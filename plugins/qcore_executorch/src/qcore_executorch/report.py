"""What became of a model in an ExecuTorch program."""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from qcore.report import LoweringReport, notes

__all__ = ["OTHERS", "PORTABLE", "ExecuTorchReport", "MendedNode"]

#: The reason of an undelegated node for which no partitioner stated one.
PORTABLE: Final = "no partitioner takes this operator"

#: What to try then.
OTHERS: Final = "Write it in the model with operators that the support page lists for this backend."


@attrs.frozen
class MendedNode:
    """A node that a delegate gets wrong, and that portable kernels execute for that reason.

    Attributes:
        name: The node's name in the converted model.
        operator: The operator it calls in the lowered graph.
        module: Path of the module it came from; empty for the model itself or where unknown.
        symptom: What went wrong with it in the delegate.
    """

    name: str
    operator: str
    module: str
    symptom: str

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.name} ({self.operator}){where}: {self.symptom}"


@attrs.frozen
class ExecuTorchReport(LoweringReport):
    """What was delegated, and what runs on ExecuTorch's portable kernels.

    Attributes:
        mended: Nodes that were left to portable kernels, since the program was wrong with them in
            a delegate.
        checked: How the program was checked; empty where it was not.
    """

    elsewhere: ClassVar[str] = "on portable kernels"

    mended: tuple[MendedNode, ...] = ()
    checked: str = ""

    @property
    def pte_bytes(self) -> int:
        """Size of the ``.pte`` in bytes."""
        return self.program_bytes


@notes.register
def _(report: ExecuTorchReport) -> tuple[str, ...]:
    mended = [f"left to portable kernels, wrong in the delegate: {n}" for n in report.mended]
    return (*([f"checked: {report.checked}"] if report.checked else []), *mended)
