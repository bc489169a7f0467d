"""What became of a model in an ExecuTorch program."""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from qcore.report import LoweringReport

__all__ = ["PORTABLE", "ExecuTorchReport"]

#: The reason of an undelegated node for which no partitioner stated one.
PORTABLE: Final = "no partitioner takes this operator"


@attrs.frozen
class ExecuTorchReport(LoweringReport):
    """What was delegated, and what runs on ExecuTorch's portable kernels."""

    elsewhere: ClassVar[str] = "on portable kernels"

    @property
    def pte_bytes(self) -> int:
        """Size of the ``.pte`` in bytes."""
        return self.program_bytes
