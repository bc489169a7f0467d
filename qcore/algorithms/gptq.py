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

from qcore.algorithms.mse import best_scales
from qcore.algorithms.weights import WeightAlgorithm, WeightGrid, one_thread

__all__ = ["Gptq"]

#: Columns whose errors are passed on together to those behind them, and when scales are tried.
_BLOCK: Final = 16
_TOGETHER: Final = 8

#: The largest group whose columns are rounded with every scale that is tried: each takes as much
#: memory as the group.
_TRIED: Final = 64

#: Weights that are quantized together, whole rows: all but heads have fewer.
_WEIGHTS: Final = 2**20

#: Scales to try, relative to the one that has the largest weight on the edge of the grid. Steps of
#: 0.025 and wider ends lose 0.15 % less, and take half as long again.
_FACTORS: Final = (1.0, *(0.66 + 0.03 * index for index in range(16)))

#: Scales that are tried together: what a column of them takes stays in a processor's own memory.
_AT_ONCE: Final = 2**15


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
            inner = torch.arange(grid.group, device=weight.device).expand(groups.shape)
            outer = torch.arange(len(groups), device=weight.device)
        firsts = torch.arange(0, len(moment), grid.group, device=weight.device)
        order = (inner + firsts.unsqueeze(1))[outer].flatten()
        damped, factor = _damped(moment[order][:, order], self.damping)
        values = weight.new_empty(weight.shape, dtype=torch.int8)
        scales = weight.new_empty((len(weight), len(groups)), dtype=torch.float32)
        step = max(1, _WEIGHTS // weight.shape[1])
        with one_thread():
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
    # What an error costs when the columns behind it have made up for it at best, and how.
    costs, shares = factor.diagonal().pow(-2), factor / factor.diagonal().unsqueeze(1)
    for group, first in enumerate(range(0, len(rest), grid.group)):
        end = first + grid.group
        part, inner = rest[first:end], shares[first:end, first:end]
        if grid.group <= _TRIED:
            step = max(1, _AT_ONCE // len(_FACTORS))
            rows = part.split(step, 1)
            scale = torch.cat([_least_lost(one, grid, costs[first:end], inner) for one in rows])
        else:
            scale = best_scales(part.T.contiguous(), grid, costs[first:end]).squeeze(1)
        scales[group] = scale
        for start in range(first, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            lost, within = rest[start:stop], shares[start:stop, start:stop]
            chosen = []
            for column, own in enumerate(lost.unbind(), 1):
                chosen.append(grid.integers(own, scale))
                own.addcmul_(chosen[-1], scale, value=-1)
                lost[column:].addr_(within[column - 1, column:], own, alpha=-1)
            torch.stack(chosen, out=integers[start:stop])
            rest[stop:].addmm_(shares[start:stop, stop:].T, lost, alpha=-1)
    return integers, scales


def _least_lost(
    part: torch.Tensor, grid: WeightGrid, costs: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Return for each row the scale with which a group's columns, (columns, rows), lose least."""
    widest = part.abs().amax(0) * (2 / (grid.high - grid.low))
    factors = torch.tensor(_FACTORS, device=part.device).unsqueeze(1)
    tried = grid.stored(widest * factors)
    scales = tried.flatten()
    rest = part.repeat(1, len(tried))
    total = torch.zeros_like(scales)
    numbers, each = shares.tolist(), costs.tolist()
    for start in range(0, len(rest), _TOGETHER):
        stop = min(start + _TOGETHER, len(rest))
        together = rest[start:stop].unbind()
        for column, own in enumerate(together):
            own.addcmul_(grid.integers(own, scales), scales, value=-1)
            total.addcmul_(own, own, value=each[start + column])
            passed = numbers[start + column][start + column + 1 : stop]
            for behind, number in zip(together[column + 1 :], passed, strict=True):
                behind.sub_(own, alpha=number)
        rest[stop:].addmm_(shares[start:stop, stop:].T, rest[start:stop], alpha=-1)
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
        own, near = integers[group], moment[group, group]
        slopes = moment[group] @ error
        diagonal = near.diagonal().unsqueeze(1)
        steps, shares = slopes / diagonal, near / diagonal
        moved = torch.empty_like(own)
        for start in range(0, grid.group, _BLOCK):
            stop = min(start + _BLOCK, grid.group)
            block, within = steps[start:stop], shares[start:stop, start:stop]
            chosen, moves = [], []
            columns = zip(own[start:stop].unbind(), block.unbind(), strict=True)
            for column, (integer, step) in enumerate(columns, 1):
                chosen.append(grid.nearest(torch.addcdiv(integer, step, scale)))
                moves.append((integer - chosen[-1]).mul_(scale))
                block[column:].addr_(within[column:, column - 1], moves[-1])
            torch.stack(chosen, out=own[start:stop])
            torch.stack(moves, out=moved[start:stop])
            steps[stop:].addmm_(shares[stop:, start:stop], moved[start:stop])
        error[group] += moved
        slope = slopes.addmm_(near, moved).mul_(own).sum(0)
        curve = (near @ own).mul_(own).sum(0)
        # Half and twice as much: a group of nearly nothing but zeros says little about its scale.
        wanted = (scale + slope / curve).nan_to_num_().clamp(scale / 2, scale * 2)
        change = grid.stored(wanted) - scale
        change *= change * (2 * slope - change * curve) > 0  # As it is kept, it may be no better.
        scale += change
        error[group] -= own * change


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
