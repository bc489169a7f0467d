"""GPTQ: round the columns of a weight one after the other, each making up for those before it.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, algorithm 1. Scales are by squared error, each column's weighted with
what is left of its input when the columns behind it are known, and chosen before the first column
is rounded: so columns may be taken in any order, and every layout of groups stays as it is.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from attrs import frozen

from qcore.algorithms.mse import best_scales
from qcore.algorithms.weights import WeightAlgorithm, WeightGrid

__all__ = ["Gptq"]

#: Columns whose errors are passed on together to those behind them: the paper's.
_BLOCK: Final = 128


@frozen
class Gptq(WeightAlgorithm):
    """Rounds so that a layer's outputs, not its weights, move the least on the samples.

    Attributes:
        damping: What is added to the diagonal of the inputs' second moment, as a share of its mean.
        reorder: Take the columns with the largest inputs first.
        equalizes: Even out the columns of layers behind a norm first.
    """

    name: ClassVar[str] = "gptq"
    uses_samples: ClassVar[bool] = True
    damping: float = 0.01
    reorder: bool = True
    equalizes: bool = True

    def choose(
        self, weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose scales, then integers column by column."""
        assert moment is not None
        diagonal = moment.diagonal()
        order = diagonal.argsort(descending=True) if self.reorder else torch.arange(len(diagonal))
        factor = _inverse_factor(moment[order][:, order], self.damping)
        back = order.argsort()
        exact = weight.detach().float()
        # What an error costs when the columns behind it have made up for it as well as they can.
        scales = best_scales(exact, grid, factor.diagonal().pow(-2)[back])
        by_column = scales.repeat_interleave(grid.group, 1)
        return _rounded(exact[:, order], by_column[:, order], grid, factor)[:, back], scales


def _rounded(
    rest: torch.Tensor, scales: torch.Tensor, grid: WeightGrid, factor: torch.Tensor
) -> torch.Tensor:
    """Return the integers; ``rest`` takes up what rounding the columns before has cost."""
    values = torch.empty(rest.shape, dtype=torch.int8)
    # Columns are rows here, so that each lies in one piece of memory.
    rest, scales = rest.T.contiguous(), scales.T.contiguous()
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        errors = torch.empty_like(rest[start:stop])
        for column in range(start, stop):
            chosen = grid.integers(rest[column], scales[column])
            values[:, column] = chosen.to(torch.int8)
            lost = (rest[column] - chosen * scales[column]) / factor[column, column]
            rest[column + 1 : stop] -= torch.outer(factor[column, column + 1 : stop], lost)
            errors[column - start] = lost
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return values


def _inverse_factor(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moment."""
    moment = moment.clone()
    diagonal = moment.diagonal()
    mean = float(diagonal.mean()) or 1.0
    added = damping * mean
    while True:
        diagonal += added
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        added = 10 * max(added, 1e-6 * mean)
