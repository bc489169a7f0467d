"""Scales by squared error: of each group, the scale that moves its weights the least.

The largest weight of a group need not be on the grid. Every group tries scales around the one that
puts it there, and keeps the best; that one is among them, so no group is worse than rounded.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from attrs import frozen

from qcore.algorithms.weights import WeightAlgorithm, WeightGrid, one_thread

__all__ = ["SquaredError", "best_scales"]

#: Scales to try, relative to the one that has the largest weight on the edge of the grid: 1 and 23
#: others. Below 0.6 clipping, above 1.15 coarser steps cost more than they save in nearly all
#: groups of 32.
_FACTORS: Final = (1.0, *(0.6 + 0.55 * index / 22 for index in range(23)))

#: Weights looked at together: a few times this is the memory that the search takes.
_AT_ONCE: Final = 2**16


def best_scales(
    weight: torch.Tensor, grid: WeightGrid, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Return for each group the scale with the smallest squared error.

    Args:
        weight: (outputs, inputs), float32.
        grid: The values that it may take.
        importance: How much the error of each column counts, (inputs,); ``None`` for all alike.

    Returns:
        (outputs, inputs / group), float32, as ``grid.stored`` returns them.
    """
    step = max(1, _AT_ONCE // weight.shape[1])
    parts = weight.split(step)
    return torch.cat([_best_scales(part, grid, importance) for part in parts])


def _best_scales(
    weight: torch.Tensor, grid: WeightGrid, importance: torch.Tensor | None
) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, grid.group))
    counts = None if importance is None else importance.view(-1, grid.group)
    widest = groups.abs().amax(-1) * (2 / (grid.high - grid.low))
    scales = grid.stored(widest)
    least = torch.full_like(scales, torch.inf)
    for factor in _FACTORS:
        scale = grid.stored(widest * factor)
        error = (grid.integers(groups, scale.unsqueeze(-1)) * scale.unsqueeze(-1) - groups).square()
        total = (error if counts is None else error * counts).sum(-1)
        better = total < least
        scales, least = torch.where(better, scale, scales), torch.where(better, total, least)
    return scales


@frozen
class SquaredError(WeightAlgorithm):
    """Rounds to nearest, with scales by squared error."""

    name: ClassVar[str] = "mse"

    def choose(
        self, weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose scales by squared error, and round."""
        del moment
        values = weight.new_empty(weight.shape, dtype=torch.int8)
        groups = weight.shape[1] // grid.group
        scales = weight.new_empty((len(weight), groups), dtype=torch.float32)
        step = max(1, _AT_ONCE // weight.shape[1])
        with one_thread():
            for start in range(0, len(weight), step):
                rows = slice(start, start + step)
                exact = weight[rows].detach().float()
                scales[rows] = _best_scales(exact, grid, None)
                grouped = exact.unflatten(1, (-1, grid.group))
                rounded = grid.integers(grouped, scales[rows].unsqueeze(-1))
                values[rows] = rounded.flatten(1).to(torch.int8)
        return values, scales
