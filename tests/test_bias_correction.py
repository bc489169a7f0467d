"""Bias correction takes back the mean error of rounded weights, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.quantizer import Quantizer

Build = Callable[[], Quantizer]

# Per-tensor 4-bit weights make the error large enough to see in one layer.
COARSE = qcore.get_symmetric_quantization_config(weight_qmin=-7, weight_qmax=7)


def mean_error(model: nn.Module, toy: Build, samples: list[torch.Tensor], correct: bool) -> float:
    result = qcore.quantize(model, toy().set_global(COARSE), samples, bias_correction=correct)
    errors = [(result.model(x) - model(x)).detach() for x in samples]
    channel = -1 if isinstance(model, nn.Linear) else 1
    stacked = torch.cat(errors).movedim(channel, 0).flatten(1)
    return float(stacked.mean(1).abs().max())


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(16, 8), (4, 16)),
    "linear, no bias": (nn.Linear(16, 8, bias=False), (4, 16)),
    "linear, 3d": (nn.Linear(16, 8), (2, 5, 16)),
    "conv2d": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 6, 6)),
    "conv2d, no bias, strided": (nn.Conv2d(4, 8, 3, stride=2, bias=False), (2, 4, 6, 6)),
    "conv2d, padded to the same size": (nn.Conv2d(4, 8, 3, padding="same"), (2, 4, 6, 6)),
    "conv2d, grouped": (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_mean_error_of_a_layer_vanishes(toy: Build, layer: str) -> None:
    torch.manual_seed(0)
    model, shape = LAYERS[layer]
    samples = [torch.rand(shape) + 1 for _ in range(8)]
    before = mean_error(model, toy, samples, correct=False)
    after = mean_error(model, toy, samples, correct=True)
    assert before > 0.02
    assert after < before / 4


def test_inputs_of_several_sizes_are_weighted_alike(toy: Build) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1)
    shapes = ({0: torch.export.Dim("n", min=1, max=8), 2: torch.export.Dim("h", min=4, max=16)},)
    samples = [torch.rand(n, 3, h, 8) + 1 for n, h in ((2, 8), (4, 12), (1, 5))]
    result = qcore.quantize(model, toy().set_global(COARSE), samples, dynamic_shapes=shapes)
    plain = qcore.quantize(
        model, toy().set_global(COARSE), samples, dynamic_shapes=shapes, bias_correction=False
    )

    @torch.no_grad()
    def bias(quantized: Any) -> float:
        return abs(sum(float((quantized.model(x) - model(x)).mean()) for x in samples))

    assert bias(result) < bias(plain) / 2


def test_dynamic_layers_keep_their_bias(toy: Build) -> None:
    model = nn.Linear(16, 8)
    result = qcore.quantize(model, toy().set_global("8da8w"), [torch.rand(4, 16)])
    assert torch.equal(result.model.get_parameter("bias"), model.bias)


def test_the_users_bias_is_not_changed(toy: Build) -> None:
    model = nn.Linear(16, 8)
    before = model.bias.detach().clone()
    qcore.quantize(model, toy().set_global(COARSE), [torch.rand(4, 16)])
    assert torch.equal(model.bias, before)


def test_a_bias_that_two_layers_share_is_corrected_for_each(toy: Build) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.bias = self.a.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    torch.manual_seed(0)
    result = qcore.quantize(Shared(), toy().set_global(COARSE), [torch.rand(4, 16) + 1])
    corrected = [value for name, value in result.model.named_buffers() if "corrected" in name]
    assert len(corrected) == 2
    assert not torch.equal(*corrected)


def test_layers_in_branches_are_corrected(toy: Build) -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: y * 2.0, (x,))

    torch.manual_seed(0)
    model, samples = Cond().eval(), [torch.rand(4, 16) + 1, -torch.rand(4, 16)]

    def error(correct: bool) -> float:
        quantizer = toy().set_global(COARSE)
        result = qcore.quantize(model, quantizer, samples, bias_correction=correct)
        with torch.no_grad():
            difference = result.model(samples[0]) - model(samples[0])
        return float(difference.mean(0).abs().max())

    assert error(correct=True) < error(correct=False) / 4


def test_no_recorder_is_left_behind(toy: Build) -> None:
    result = qcore.quantize(nn.Linear(4, 4), toy().set_global("8a8w"), [torch.rand(2, 4)])
    assert not [name for name, _ in result.model.named_modules() if "mean" in name]
