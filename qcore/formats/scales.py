"""Rules for scales: which of them hardware has, and how observers choose between these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import torch
from attrs import frozen

from qcore.compat.torchao import HISTOGRAM

__all__ = ["SYMMETRIC", "FixedPoint", "ScaleRule", "power_of_two", "with_scales"]

#: What a scale becomes: another one that the hardware has, no smaller, of the same shape. Its name,
#: or what ``str`` says of it, stands in reports and messages.
ScaleRule = Callable[[torch.Tensor], torch.Tensor]

_TINY: Final = torch.finfo(torch.float32).smallest_normal

#: The kinds of qspec whose zero point is fixed.
SYMMETRIC: Final = (torch.per_tensor_symmetric, torch.per_channel_symmetric, None)


def power_of_two(scales: torch.Tensor) -> torch.Tensor:
    """Round scales up to powers of two, with which rescaling is a shift.

    Args:
        scales: Positive scales of any shape.

    Returns:
        The next powers of two; ranges only widen.
    """
    return torch.exp2(torch.ceil(torch.log2(scales)))


@frozen
class FixedPoint:
    """A rule for scales: multiples of ``2**-fraction``, which is the smallest.

    Attributes:
        fraction: Bits behind the point.
    """

    fraction: int

    def __str__(self) -> str:
        return f"fixed-point ({self.fraction} bits)"

    def __call__(self, scales: torch.Tensor) -> torch.Tensor:
        """Round scales up to such multiples."""
        return torch.ceil(scales * 2**self.fraction) / 2**self.fraction


@functools.cache
def with_scales(observer: Any, rule: ScaleRule, is_weight: bool) -> type:
    """Return a class of observers whose scales obey a rule.

    Rounded up, a scale may be nearly twice as coarse as need be; half of it clips the largest
    values. Of a weight and of a histogram the values are known, so the one with the smaller squared
    error is taken; elsewhere nothing is clipped. The error of a weight's output channel is relative
    to the channel: norms and the layers behind make up for how large a channel is.

    Args:
        observer: The class of an observer or of fake quantization.
        rule: What scales must be.
        is_weight: Whether all that it sees is one tensor, with output channels along ``ch_axis``.

    Returns:
        A subclass.
    """
    has_histogram = issubclass(observer, HISTOGRAM.target())

    def forward(self: Any, x: torch.Tensor) -> Any:
        self.weight = x.detach()
        return observer.forward(self, x)

    def calculate_qparams(self: Any) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero_point = observer.calculate_qparams(self)
        whole = _in_steps_of(rule(scale), self, scale, zero_point)
        if is_weight and hasattr(self, "weight"):
            values = self.weight.movedim(getattr(self, "ch_axis", 0), 0).flatten(1)
            counts = 1 / values.square().sum(1, keepdim=True).clamp(min=_TINY)
        elif has_histogram and self.histogram.any():
            bins = torch.arange(self.bins, device=scale.device).unsqueeze(0) + 0.5
            values = self.min_val + (self.max_val - self.min_val) / self.bins * bins
            counts = self.histogram
        else:
            return whole
        half = _in_steps_of(rule((scale / 2).clamp(min=self.eps)), self, scale, zero_point)
        lost, lost_by_half = (_error(self, values, counts, *one) for one in (whole, half))
        clips = (lost_by_half < lost).reshape(scale.shape)
        return torch.where(clips, half[0], whole[0]), torch.where(clips, half[1], whole[1])

    methods: dict[str, Any] = {"calculate_qparams": calculate_qparams}
    if is_weight:
        methods["forward"] = forward
    return type(observer.__name__, (observer,), methods)


def _in_steps_of(
    allowed: torch.Tensor, observer: Any, scale: torch.Tensor, zero_point: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an allowed scale with the zero point that keeps the smallest level where it is."""
    if observer.qscheme in SYMMETRIC:
        return allowed, zero_point
    low, high = observer.quant_min, observer.quant_max
    below = torch.round((zero_point - low) * scale / allowed)
    return allowed, (low + below).clamp(low, high).to(zero_point.dtype)


def _error(
    observer: Any,
    values: torch.Tensor,
    counts: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
) -> torch.Tensor:
    """Return the squared error of quantizing rows of values, weighted, for each scale."""
    each, zero = scale.reshape(-1, 1), zero_point.reshape(-1, 1)
    levels = (values / each + zero).round().clamp(observer.quant_min, observer.quant_max)
    errors = (((levels - zero) * each - values).square() * counts).sum(1)
    return errors if len(each) > 1 else errors.sum()
