"""Blocks of MobileNetV3 as torchvision builds them: their activations write in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcore
from qcore.quantizer import Quantizer
from qcore_ethosu import get_symmetric_quantization_config

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class SqueezeExcitation(nn.Module):
    """Scales channels by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = self.up(nn.functional.relu(self.down(self.pool(x)), inplace=True))
        return nn.functional.hardsigmoid(factors, inplace=True) * x


class Block(nn.Module):
    """Expands, convolves each channel, scales, and projects; adds its input."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            activation(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            activation(inplace=True),
            SqueezeExcitation(16),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layers(x)
        result += x
        return result


def mobile() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(True), Block(nn.ReLU), Block(nn.Hardswish)
    ).eval()


@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u85-256"])
def test_they_are_quantized_throughout(target: str) -> None:
    q: Quantizer = qcore.get_quantizer("ethosu", target=target).set_global("8a8w")
    graph = torch.export.export(mobile(), (X,)).module(check_guards=False)
    report = qcore.quantize(graph, q, [X], progress=False).report
    assert not report.in_float


def test_they_are_quantized_throughout_in_training() -> None:
    q = qcore.get_quantizer("ethosu", target="ethos-u85-256")
    q.set_global(get_symmetric_quantization_config(is_qat=True))
    report = qcore.quantize(mobile(), q, [X.repeat(2, 1, 1, 1)], is_qat=True, progress=False).report
    assert not report.in_float


def test_xnnpack_quantizes_them_as_far_as_its_table_goes() -> None:
    q = qcore.get_quantizer("xnnpack").set_global("8a8w")
    report = qcore.quantize(mobile(), q, [X], progress=False).report
    assert {d.operator for d in report.in_float} == {
        "aten.hardswish.default",
        "aten.hardsigmoid.default",
    }
