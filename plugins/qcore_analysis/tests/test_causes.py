"""What loses most is named with its cause, and each cause is one that was planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import qcore
from qcore_analysis.causes import cause_of
from qcore_analysis.models import imported
from qcore_analysis.stages import compare


def net() -> Any:
    return imported("shop:net", "model").eval()


def planted() -> Any:
    return imported("shop:planted", "model").eval()


def one_wide_channel() -> Any:
    model = net()
    with torch.no_grad():
        # What is always zero makes the first channel wide, and nothing else.
        model[0].weight[0], model[0].bias[0] = 0, -1
        model[2].weight[0, 0] = 300
    return model


def summing() -> Any:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, bias=False)).eval()
    torch.nn.init.ones_(model[0].weight)
    return model


def same(sample: torch.Tensor) -> torch.Tensor:
    return sample


def tripled(sample: torch.Tensor) -> torch.Tensor:
    return 3 * sample


@pytest.mark.parametrize(
    ("model", "scheme", "changed", "says"),
    [
        (planted, "8a8w", same, "its weights to 255 levels, a scale for each channel, 88 % of "),
        (
            one_wide_channel,
            "8a8w per-tensor",
            same,
            r"its weights to 255 levels, one scale for all, the widest channel \d+ times the ",
        ),
        (net, "8a8w", same, "its value to 256 levels$"),
        (net, "8a8w", tripled, r"the model's input to 256 levels, \d+ % of it clipped"),
        # Each input is within what was seen, and their sum is not.
        (summing, "8a8w", torch.ones_like, "its value to 256 levels, 100 % of it clipped"),
    ],
)
def test_a_planted_cause_is_named(
    model: Callable[[], Any], scheme: str, changed: Callable[[Any], Any], says: str
) -> None:
    samples = imported("shop:samples", "data")
    others = [changed(sample) for sample in samples[4:]]
    found = compare(
        model(),
        qcore.get_quantizer("xnnpack").set_global(scheme),
        samples[:4],
        others,
        algorithms=(),
        execute=False,
        least_db=20,
        lowering={},
        quiet=True,
    )
    assert re.match(f"rounding {says}", cause_of(found, others))
