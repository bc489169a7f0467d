"""What is said of calibration samples that cannot be right."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import qcore
from qcore.errors import CalibrationWarning

torch.manual_seed(0)
NETWORK = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def typical(count: int = 16) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.rand(8, 16, generator=source) - 0.5 for _ in range(count)]


def growing() -> list[torch.Tensor]:
    return [x * 1.2**i for i, x in enumerate(typical())]


def said(samples: Iterable[Any], scheme: str = "8a8w", method: str = "histogram") -> list[str]:
    quantizer = qcore.get_quantizer("xnnpack").set_global(scheme).set_calibration(method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalibrationWarning)
        report = qcore.quantize(NETWORK.eval(), quantizer, samples).report
    found = [str(w.message) for w in caught if issubclass(w.category, CalibrationWarning)]
    assert found == list(report.warnings)
    return found


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_ordinary_samples_are_passed_over(count: int) -> None:
    assert not said(typical(count))


WRONG: list[tuple[str, Callable[[list[torch.Tensor]], list[torch.Tensor]], str]] = [
    ("single", lambda x: [x[0][:2]], "one calibration sample.*Pass more: 32 to 512"),
    ("constant", lambda x: [*x, 0 * x[0]], r"1 of 17 .* is constant \(number 16\).*Leave"),
    ("copies", lambda x: x[:1] * 6, r"5 of 6 .* same as an earlier one \(number 1, 2, 3, 4, ...\)"),
    (
        "pixels",
        lambda x: [*x[1:], 8 * x[0]],
        r"1 of 16 .* outside .*\(number 15\).*'input'.*alike",
    ),
    ("growing", lambda x: growing(), "still grow .* random order"),
]


@pytest.mark.parametrize("method", ["histogram", "min_max"])
@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_samples_that_cannot_be_right_are_said(
    spoil: Callable[[list[torch.Tensor]], list[torch.Tensor]], message: str, method: str
) -> None:
    (found,) = said(spoil(typical()), method=method)
    assert re.search(message, found), found


def test_an_iterator_of_unknown_length_is_looked_at_alike() -> None:
    (found,) = said(iter(growing()))
    assert "still grow" in found


def test_one_sample_that_is_a_batch_is_enough() -> None:
    assert not said([torch.cat(typical())])


def test_a_model_with_dynamic_activations_takes_any_sample() -> None:
    assert not said([torch.zeros(1, 16)], scheme="8da8w")


def test_the_warning_points_at_the_line_of_the_user() -> None:
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    with pytest.warns(CalibrationWarning, match="one calibration sample") as caught:
        qcore.quantize(NETWORK.eval(), quantizer, [typical()[0][:2]])
    assert caught[0].filename == __file__


def test_a_report_keeps_its_warnings_as_data_and_says_them_as_text() -> None:
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    with pytest.warns(CalibrationWarning):
        report = qcore.quantize(NETWORK.eval(), quantizer, [typical()[0][:2]]).report
    assert type(report).from_dict(report.to_dict()).warnings == report.warnings
    assert f"warning: {report.warnings[0]}" in str(report)
