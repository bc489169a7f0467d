"""Inputs that a model was captured with one dynamic size for have one size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import Dim

import qcore
from qcore.errors import CalibrationError, LoweringError, RuntimeExecutionError

TOLD = r"dimension 0 of 'x' is 3 and dimension 0 of 'y' is 2, .* one size for both. Give both"


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Compute (n, 8) of two (n, 8)."""
        return self.layer(x) + y


def pair(x: int, y: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(x, 8), torch.rand(y, 8)


def quantized(
    *samples: tuple[torch.Tensor, torch.Tensor],
) -> tuple[qcore.Quantizer, qcore.QuantizedModel]:
    size = {0: Dim("n", min=1, max=16)}
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    shapes = {"x": size, "y": size}
    return quantizer, qcore.quantize(Sum().eval(), quantizer, samples, dynamic_shapes=shapes)


def test_a_calibration_sample_with_two_sizes_for_one_is_refused() -> None:
    with pytest.raises(CalibrationError, match=f"Calibration sample 1 does not fit .*{TOLD}"):
        quantized(pair(4, 4), pair(3, 2))


def test_a_program_refuses_two_sizes_for_one(tmp_path: Path) -> None:
    quantizer, result = quantized(pair(4, 4), pair(5, 5))
    with pytest.raises(LoweringError, match=f"example inputs do not fit together: {TOLD}"):
        quantizer.lower(result, pair(3, 2))
    program = quantizer.lower(result, pair(4, 4))
    assert program.run(*pair(3, 3)).shape == (3, 8)
    for made in (program, qcore.LoweredProgram.load(program.save(tmp_path / "sum.pte"))):
        with pytest.raises(RuntimeExecutionError, match=f"inputs do not fit together: {TOLD}"):
            made.run(*pair(3, 2))
