"""Disturbed runs of a converted model: what they move, and what they leave."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from qcore.testing import run_disturbed


class Looked(nn.Module):
    """Returns a quantized weight in float, and what a layer computes with it."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.register_buffer(
            "integers", torch.randint(-127, 128, (4, 32), dtype=torch.int8, generator=random)
        )
        self.register_buffer("scales", torch.full((4, 1), 0.01))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.ops.torchao.dequantize_affine(
            self.integers, [1, 32], self.scales, None, torch.int8, -128, 127
        )
        return weight, x @ weight.T


def test_results_move_a_little_and_what_integers_stand_for_does_not() -> None:
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    model = torch.export.export(Looked(), (x,)).module()
    assert isinstance(model, GraphModule)
    weight, result = run_disturbed(model, None, x)
    moved_weight, moved_result = run_disturbed(model, 0, x)
    assert torch.equal(weight, moved_weight)
    assert not torch.equal(result, moved_result)
    torch.testing.assert_close(result, moved_result)
