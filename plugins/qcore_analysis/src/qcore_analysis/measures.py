"""How far tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from attrs import define
from torch.utils._pytree import tree_leaves

__all__ = ["NO_NOISE_DB", "Distance", "distance_of"]

NO_NOISE_DB: Final = 200.0
"""The SQNR where there is no noise: JSON has no infinity."""


@define
class Distance:
    """The distance of outputs from references, summed up over samples.

    Attributes:
        signal: Sum of the squares of the references.
        noise: Sum of the squares of the differences.
        power: Sum of the squares of the outputs.
        product: Sum of the products of both.
        largest: The largest difference of one element.
        agreeing: Rows whose largest element is at the same place.
        rows: Rows that could agree; 0 where the outputs do not look like logits.
    """

    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    agreeing: int = 0
    rows: int = 0

    def add(self, reference: torch.Tensor, output: torch.Tensor) -> None:
        """Add one pair of tensors of the same shape."""
        expected, actual = reference.detach().double(), output.detach().double()
        self.signal += float(expected.pow(2).sum())
        self.noise += float((expected - actual).pow(2).sum())
        self.power += float(actual.pow(2).sum())
        self.product += float((expected * actual).sum())
        if expected.numel():
            self.largest = max(self.largest, float((expected - actual).abs().max()))
        if expected.dim() == 2 and expected.shape[1] > 1:
            self.agreeing += int((expected.argmax(1) == actual.argmax(1)).sum())
            self.rows += len(expected)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels."""
        if math.isnan(self.noise):
            return -NO_NOISE_DB
        if self.noise == 0:
            return NO_NOISE_DB
        if self.signal == 0:
            return -NO_NOISE_DB
        return max(-NO_NOISE_DB, min(NO_NOISE_DB, 10 * math.log10(self.signal / self.noise)))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 where both are zero."""
        length = math.sqrt(self.signal * self.power)
        return self.product / length if length else float(self.signal == self.power)

    @property
    def top1(self) -> float | None:
        """Share of rows with the same largest element; None where they are no logits."""
        return self.agreeing / self.rows if self.rows else None


def distance_of(references: Iterable[Any], outputs: Sequence[Any]) -> Distance:
    """Return how far outputs are from references.

    Args:
        references: What a model returns for each sample.
        outputs: The same of another.

    Returns:
        Their distance, over all float tensors of all samples.
    """
    found = Distance()
    for expected, actual in zip(references, outputs, strict=True):
        for one, other in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                found.add(one, other)
    return found
