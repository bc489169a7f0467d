"""The smallest and the largest value that the samples have."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import frozen

from qcore.compat.torchao import MinMaxObserver
from qcore.formats import NumberFormat

__all__ = ["MinMax"]


@frozen
class MinMax:
    """Ranges that clip nothing seen: fast, and as coarse as the largest outlier."""

    name: ClassVar[str] = "min_max"

    def observer(self, number_format: NumberFormat) -> Any:
        """Return the observer's class; it suits every format."""
        del number_format
        return MinMaxObserver
