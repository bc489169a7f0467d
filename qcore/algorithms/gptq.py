"""GPTQ: round the columns of a weight one after the other, each making up for those before it.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, algorithm 1. Three things are other than there. Columns are taken group by
group, so that every layout of groups stays as it is. A group's scale is chosen when its turn comes,
by what rounding its columns one after the other then loses. And once all is known, each integer and
each scale is moved to where the error is the smallest with all others as they are: coordinate
descent, as Behdin et al. do with integers ("QuantEase", 2023).
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from attrs import frozen

from qcore.algorithms.mse import FACTORS, best_scales
from qcore.algorithms.weights import WeightAlgorithm, WeightGrid

__all__ = ["Gptq"]

#: Columns whose errors are passed on together to those behind them. They are so few, and so few
#: when scales are tried, that torch does no step within in several threads: waking them takes
#: longer.
_BLOCK: Final = 16
_TOGETHER: Final = 8

#: The largest group whose columns are rounded with every scale that is tried: each takes as much
#: memory as the group.
_TRIED: Final = 64

#: Weights that are quantized together, whole rows: all but heads have fewer.
_WEIGHTS: Final = 2**20

#: Scales that are tried together.
_AT_ONCE: Final = 2**15 - 1


@frozen
class Gptq(WeightAlgorithm):
    """Rounds so that a layer's outputs, not its weights, move the least on the samples.

    Attributes:
        damping: What is added to the diagonal of the inputs' second moment, as a share of its mean.
        reorder: Take the groups, and in each the columns, with the largest inputs first.
        rounds: How often each integer and each scale is moved once all are known.
        equalizes: Even out the columns of layers behind a norm first.
    """

    name: ClassVar[str] = "gptq"
    uses_samples: ClassVar[bool] = True
    damping: float = 0.03
    reorder: bool = True
    rounds: int = 1
    equalizes: bool = True

    def choose(
        self, weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose scales and integers group by group, then move each to fit the others."""
        assert moment is not None
        groups = moment.diagonal().unflatten(0, (-1, grid.group))
        if self.reorder:
            inner = groups.argsort(1, descending=True)
            outer = groups.sum(1).argsort(descending=True)
        else:
            inner = torch.arange(grid.group).expand(groups.shape)
            outer = torch.arange(len(groups))
        order = (inner + grid.group * torch.arange(len(groups)).unsqueeze(1))[outer].flatten()
        damped, factor = _damped(moment[order][:, order], self.damping)
        values = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(len(weight), len(groups))
        step = max(1, _WEIGHTS // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            # Columns are rows from here on, so that each lies in one piece of memory.
            exact = weight[rows].detach().float()[:, order].T.contiguous()
            integers, chosen = self._chosen(exact, grid, damped, factor)
            values[rows, order] = integers.T.to(torch.int8)
            scales[rows, outer] = chosen.T
        return values, scales

    def _chosen(
        self, exact: torch.Tensor, grid: WeightGrid, moment: torch.Tensor, factor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        integers, scales = _rounded(exact.clone(), grid, factor)
        for _ in range(self.rounds):
            _descend(exact, integers, scales, grid, moment)
        return integers, scales


def _rounded(
    rest: torch.Tensor, grid: WeightGrid, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers and scales; ``rest`` takes up what rounding the columns before has cost."""
    integers = torch.empty_like(rest)
    scales = rest.new_empty(len(rest) // grid.group, rest.shape[1])
    for group, first in enumerate(range(0, len(rest), grid.group)):
        end = first + grid.group
        part = rest[first:end]
        if grid.group <= _TRIED:
            step = max(1, _AT_ONCE // len(FACTORS))
            inner = factor[first:end, first:end]
            scale = torch.cat([_least_lost(rows, grid, inner) for rows in part.split(step, 1)])
        else:
            # What an error costs when the columns behind it have made up for it at best.
            cost = factor.diagonal()[first:end].pow(-2)
            scale = best_scales(part.T.contiguous(), grid, cost).squeeze(1)
        scales[group] = scale
        for start in range(first, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            lost = rest[start:stop]
            for column in range(start, stop):
                integers[column] = grid.integers(rest[column], scale)
                rest[column] -= integers[column] * scale
                rest[column] /= factor[column, column]
                behind = factor[column, column + 1 : stop]
                rest[column + 1 : stop].addr_(behind, rest[column], alpha=-1)
            rest[stop:].addmm_(factor[start:stop, stop:].T, lost, alpha=-1)
    return integers, scales


def _least_lost(part: torch.Tensor, grid: WeightGrid, factor: torch.Tensor) -> torch.Tensor:
    """Return for each row the scale with which a group's columns, (columns, rows), lose least."""
    widest = part.abs().amax(0) * (2 / (grid.high - grid.low))
    tried = grid.stored(widest * torch.tensor(FACTORS).unsqueeze(1))
    scales = tried.flatten()
    rest = part.repeat(1, len(tried))
    total = torch.zeros_like(scales)
    shares = (factor / factor.diagonal().unsqueeze(1)).tolist()
    costs = factor.diagonal().square().reciprocal().tolist()
    for start in range(0, len(rest), _TOGETHER):
        stop = min(start + _TOGETHER, len(rest))
        for column in range(start, stop):
            own = rest[column]
            own.addcmul_(grid.integers(own, scales), scales, value=-1)
            total.addcmul_(own, own, value=costs[column])
            for behind in range(column + 1, stop):
                rest[behind].sub_(own, alpha=shares[column][behind])
        passed = factor[start:stop, stop:] / factor.diagonal()[start:stop].unsqueeze(1)
        rest[stop:].addmm_(passed.T, rest[start:stop], alpha=-1)
    best = total.view_as(tried).argmin(0, keepdim=True)
    return tried.gather(0, best).squeeze(0)


def _descend(
    exact: torch.Tensor,
    integers: torch.Tensor,
    scales: torch.Tensor,
    grid: WeightGrid,
    moment: torch.Tensor,
) -> None:
    """Move each integer, then its group's scale, to the best with all others as they are."""
    error = scales.repeat_interleave(grid.group, 0).mul_(integers).neg_().add_(exact)
    for scale, first in zip(scales, range(0, len(exact), grid.group), strict=True):
        group = slice(first, first + grid.group)
        for start in range(first, group.stop, _BLOCK):
            stop = min(start + _BLOCK, group.stop)
            slope = moment[start:stop] @ error
            for column, own in enumerate(slope, start):
                wanted = integers[column] * scale + own / moment[column, column]
                chosen = grid.integers(wanted, scale)
                moved = (integers[column] - chosen) * scale
                integers[column] = chosen
                error[column] += moved
                behind = moment[column, column + 1 : stop]
                slope[column + 1 - start :].addr_(behind, moved)
        own = integers[group]
        slope = (moment[group] @ error).mul_(own).sum(0)
        curve = (moment[group, group] @ own).mul_(own).sum(0)
        # Half and twice as much: a group of nearly nothing but zeros says little about its scale.
        wanted = (scale + slope / curve).nan_to_num_().clamp(scale / 2, scale * 2)
        moved = grid.stored(wanted) - scale
        moved *= moved * (2 * slope - moved * curve) > 0  # As it is kept, it may be no better.
        scale += moved
        error[group] -= own * moved


def _damped(moment: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the damped moment, and the upper Cholesky factor of its inverse."""
    diagonal = moment.diagonal()
    mean = float(diagonal.mean()) or 1.0
    added = damping * mean
    while True:
        diagonal += added
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return moment, upper
        added = 10 * max(added, 1e-6 * mean)
