"""What the comparison of a program with its model found."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from qcore.report.base import Report
from qcore.report.serialize import figure

__all__ = ["Verification"]


@frozen
class Verification(Report):
    """A program's outputs against those of the quantized model it was lowered from.

    Attributes:
        sqnr_db: Signal to quantization noise in decibels, of the worst output.
        max_abs_error: The largest difference of any element of any output.
    """

    kind: ClassVar[str] = "verification"

    #: The least ``sqnr_db`` of a right program. Floating-point sums of values near 1 in another
    #: order stay above it.
    least_sqnr_db: ClassVar[float] = 80.0

    sqnr_db: float
    max_abs_error: float

    @figure
    def ok(self) -> bool:
        """Whether the program computes what the model does."""
        return self.sqnr_db >= self.least_sqnr_db
