"""The histogram observer finds what torchao's finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchao.quantization.pt2e import HistogramObserver as TorchaoHistogramObserver

from qcore.calibration import HistogramObserver


def _pair(**options: object) -> tuple[HistogramObserver, TorchaoHistogramObserver]:
    arguments = {"dtype": torch.int8, "eps": 2**-12, **options}
    return HistogramObserver(**arguments), TorchaoHistogramObserver(**arguments)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batches=st.integers(1, 4),
    size=st.integers(1, 4000),
    shape=st.sampled_from(["normal", "heavy tail", "relu", "constant", "uniform"]),
    scale=st.floats(1e-3, 1e3),
)
def test_it_finds_the_range_that_torchao_finds(
    seed: int, batches: int, size: int, shape: str, scale: float
) -> None:
    torch.manual_seed(seed)
    ours, theirs = _pair()
    for _ in range(batches):
        x = torch.randn(size) * scale
        x = {
            "normal": x,
            "heavy tail": x.sign() * x.abs().exp().clamp(max=1e6),
            "relu": x.relu(),
            "constant": torch.full_like(x, scale),
            "uniform": torch.rand(size) * scale,
        }[shape]
        ours(x)
        theirs(x)
    for mine, expected in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert torch.equal(mine, expected)


def test_it_finds_the_range_of_symmetric_activations_too() -> None:
    ours, theirs = _pair(qscheme=torch.per_tensor_symmetric)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    ours(x)
    theirs(x)
    for mine, expected in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert torch.equal(mine, expected)


def test_the_values_pass_through_unchanged() -> None:
    ours, _ = _pair()
    x = torch.randn(10)
    assert ours(x) is x


def test_a_dynamic_histogram_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="dynamic"):
        HistogramObserver(is_dynamic=True)
