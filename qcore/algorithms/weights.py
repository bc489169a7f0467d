"""What an algorithm of source quantization is: it chooses the integers and scales of one weight."""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from attrs import frozen

__all__ = ["WeightAlgorithm", "WeightGrid"]

#: Added to a float32 below 2**22, it leaves no place for fractions: ties go to even.
_ROUNDS: Final = 1.5 * 2**23


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
        # torch's own rounding wakes all threads for 2,048 numbers, longer than the rest takes.
        return (weight / scale).clamp_(self.low, self.high).add_(_ROUNDS).sub_(_ROUNDS)


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
