"""The histogram observer: torchao's result at a fraction of its time."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from qcore.compat.torchao import HISTOGRAM
from qcore.formats import NumberFormat

__all__ = ["Histogram", "HistogramObserver"]

_STEP = 1e-5


@functools.cache
def _quantiles() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and the upper quantiles that a search may come by, added up step by step."""
    steps = np.full(round(1 / _STEP) + 2, _STEP)
    steps[0] = 0.0
    lower = np.add.accumulate(steps)
    steps[0] = 1.0
    return lower, np.subtract.accumulate(steps)


@frozen
class Histogram:
    """Ranges with the least squared error, from a histogram of the values; the default."""

    name: ClassVar[str] = "histogram"

    def observer(self, number_format: NumberFormat) -> Any:
        """Return the observer's class, which is told the levels."""
        del number_format
        return HistogramObserver


class HistogramObserver(HISTOGRAM.checked()):  # type: ignore[misc]
    """Choose a range that minimizes the L2 error of quantization, from a running histogram.

    Finds the same range as ``torchao.quantization.pt2e.HistogramObserver``, whose parameters it
    takes. torchao narrows the range by quantiles in steps of 1e-5 and reads single elements of
    tensors in each step; here the steps in which nothing changes are skipped.

    The search is the nonlinear one of Caffe2's ``norm_minimization.cc``.

    torchao takes the range to have all levels of the type that stores them; here it has those
    between ``quant_min`` and ``quant_max``, in whole bits.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dst_nbins: int = 2 ** int(self.quant_max - self.quant_min).bit_length()

    def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
        cumulative = torch.cumsum(self.histogram, dim=0).tolist()
        total = float(self.histogram.sum().item())
        error = _QuantizationError(self)
        alphas, betas = _quantiles()
        # torchao compares a float32 element with a Python number, which torch rounds to float32.
        lows, highs = ((some * total).astype(np.float32) for some in (alphas, betas))
        ascending = -highs
        start, end = 0, self.bins - 1
        # How many steps the lower quantile has gone up, and the upper one down.
        up = down = 0
        best = float("inf")
        while alphas[up] < betas[down]:
            left, right = start, end
            while left < end and cumulative[left] < lows[up + 1]:
                left += 1
            if left == start:
                # Only the upper quantile moves, until the last bin is above it.
                down = max(down, int(np.searchsorted(ascending, -cumulative[end], "right")) - 1)
                if start == end or alphas[up] >= betas[down]:
                    break
            while right > start and cumulative[right] > highs[down + 1]:
                right -= 1
            next_start, next_end = start, end
            if left - start > end - right:
                next_start, up = left, up + 1
            else:
                next_end, down = right, down + 1
            if next_start == start and next_end == end:
                continue
            norm = error(next_start, next_end)
            if norm > best:
                break
            best, start, end = norm, next_start, next_end
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * start, self.min_val + width * (end + 1)


class _QuantizationError:
    """L2 error of quantizing the histogram when only ``start..end`` is represented."""

    def __init__(self, observer: Any) -> None:
        self._bins: int = observer.bins
        self._levels: int = observer.dst_nbins
        self._width = (observer.max_val.item() - observer.min_val.item()) / self._bins
        self._density = (observer.histogram / self._width).cpu() if self._width else None
        self._index = torch.arange(self._bins)

    def __call__(self, start: int, end: int) -> float:
        step = self._width * (end - start + 1) / self._levels
        if step == 0.0 or self._density is None:
            return 0.0
        begin = (self._index - start) * self._width
        finish = begin + self._width
        last = self._levels - 1
        first_level = torch.clamp(torch.div(begin, step, rounding_mode="floor"), 0, last)
        last_level = torch.clamp(torch.div(finish, step, rounding_mode="floor"), 0, last)
        half = torch.tensor(step / 2)
        from_first = begin - (first_level + 0.5) * step
        to_last = finish - (last_level * step + step / 2)
        # A level contributes the integral of x^2 over its part of the bin, times the density.
        # Cubes are products of float32, as in torchao, so that ties fall alike.
        cube = half * half * half
        total = self._density * ((cube - from_first * from_first * from_first) / 3)
        total = total + (last_level - first_level - 1) * (self._density * ((cube + cube) / 3))
        total = total + self._density * ((to_last * to_last * to_last + cube) / 3)
        return float(total.sum().item())
