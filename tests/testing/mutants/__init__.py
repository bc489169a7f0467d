"""Defects, planted in the two examples; each module holds those of one stage."""

from . import annotated, computed, declared, lowered, numbers, rewritten
from .defects import DEFECTS, Calls, Defect, calls, suite_of

__all__ = [
    "DEFECTS",
    "Calls",
    "Defect",
    "annotated",
    "calls",
    "computed",
    "declared",
    "lowered",
    "numbers",
    "rewritten",
    "suite_of",
]
