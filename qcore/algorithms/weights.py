"""What an algorithm of source quantization is: it chooses the integers and scales of one weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from attrs import frozen

__all__ = ["WeightAlgorithm", "WeightGrid", "one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to this thread: for many small steps, each shorter than waking another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@frozen
class WeightGrid:
    """The values that a weight may take: integers times a scale for each group of a row.

    Attributes:
        low: The smallest integer.
        high: The largest integer.
        group: How many weights of a row share a scale.
        scale_dtype: The type that the backend keeps scales in.
    """

    low: int
    high: int
    group: int
    scale_dtype: torch.dtype = torch.float32

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Return scales as the backend keeps them, float32; never 0."""
        smallest = torch.finfo(torch.float32).smallest_normal
        return scale.clamp(min=smallest).to(self.scale_dtype).float()

    def integers(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Round to the nearest integers that there are; ``scale`` broadcasts; float32."""
        return self.nearest(weight / scale)

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Round in place to the nearest integers that there are; ties go to even."""
        return values.clamp_(self.low, self.high).round_()


class WeightAlgorithm:
    """Chooses what a weight becomes. Subclass it, give it a name and override :meth:`choose`.

    It sees grids, not backends, so that it serves them all.

    Attributes:
        name: Its name, as in ``qcore.quantize_(..., algorithm="gptq")``.
        uses_samples: Whether it wants to know the layer's inputs: ``calibration_data`` is required.
        equalizes: With samples: whether the columns of layers behind a norm are evened out before,
            by factors that the norm's weight takes up.
    """

    name: ClassVar[str]
    uses_samples: ClassVar[bool] = False
    equalizes: bool = False

    def choose(
        self, weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the integers and scales of a weight.

        Args:
            weight: The float weight, (outputs, inputs); not to be changed.
            grid: The values that it may take.
            moment: The sum of x x^T over the layer's inputs x, (inputs, inputs), float32; ``None``
                for an algorithm that uses no samples.

        Returns:
            Integers, (outputs, inputs), int8; and scales, (outputs, inputs / group), float32, as
            ``grid.stored`` returns them.
        """
        raise NotImplementedError
