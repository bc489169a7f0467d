"""Number formats: the levels that stand for real numbers, and how torchao spells them.

A format is data. A new one (four-bit activations, scales that are powers of two) is one object:
schemes take it in place of a number of bits, and nothing else asks what it is.
"""

from __future__ import annotations

from qcore.formats.number_format import (
    ACTIVATIONS,
    INT8,
    INT8_WEIGHTS,
    INT16,
    LABEL,
    SMALLEST_SCALE,
    UINT8,
    WEIGHTS,
    FormatObserver,
    NumberFormat,
    integer_format,
)
from qcore.formats.scales import FixedPoint, ScaleRule, power_of_two

__all__ = [
    "ACTIVATIONS",
    "INT8",
    "INT8_WEIGHTS",
    "INT16",
    "LABEL",
    "SMALLEST_SCALE",
    "UINT8",
    "WEIGHTS",
    "FixedPoint",
    "FormatObserver",
    "NumberFormat",
    "ScaleRule",
    "integer_format",
    "power_of_two",
]
