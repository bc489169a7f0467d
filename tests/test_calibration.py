"""Calibration samples: what is wrong with them is said before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import CalibrationError, SelectionError
from qcore.quantizer import Quantizer

Build = Callable[[], Quantizer]
X = torch.randn(2, 8)


def run(toy: Build, samples: Any, **options: Any) -> qcore.QuantizedModel:
    return qcore.quantize(nn.Linear(8, 4), toy().set_global("8a8w"), samples, **options)


@pytest.mark.parametrize(
    "samples",
    [[X], [(X,)], [[X]], iter([X, 2 * X]), ({"input": X},), (x for x in [X])],
    ids=["tensor", "tuple", "list", "iterator", "mapping", "generator"],
)
def test_samples_come_in_any_usual_form(toy: Build, samples: Any) -> None:
    assert run(toy, samples).model(X).shape == (2, 4)


def test_every_sample_is_measured(toy: Build) -> None:
    quantized = run(toy, iter([X, X * 10]))
    assert (quantized.model(X * 10) - X.new_zeros(2, 4)).abs().max() > quantized.model(
        X
    ).abs().max()


def test_an_empty_set_is_an_error(toy: Build) -> None:
    with pytest.raises(CalibrationError, match="has no samples. Pass at least one"):
        run(toy, [])


def test_an_exhausted_iterator_is_an_error_that_says_so(toy: Build) -> None:
    samples = iter([X])
    next(samples)
    with pytest.raises(CalibrationError, match="may have been used up already: pass a list"):
        run(toy, samples)


@pytest.mark.parametrize("samples", [X, "samples", 3])
def test_one_sample_in_place_of_a_collection_is_an_error(toy: Build, samples: Any) -> None:
    with pytest.raises(CalibrationError, match=r"a collection of samples is due. Wrap it"):
        run(toy, samples)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_sample_that_is_not_finite_is_named(toy: Build, value: float, kind: str) -> None:
    bad = X.clone()
    bad[1, 3] = value
    with pytest.raises(CalibrationError, match=f"sample 2, input 'input' contains {kind}"):
        run(toy, [X, X, bad])


def test_the_first_sample_is_checked_too(toy: Build) -> None:
    with pytest.raises(CalibrationError, match="sample 0, input 'input' contains NaN"):
        run(toy, [X * float("nan")])


def test_another_shape_is_named_with_both_shapes(toy: Build) -> None:
    with pytest.raises(CalibrationError, match=r"sample 1.*\(1, 8\).*\(2, 8\).*drop_last=True"):
        run(toy, [X, X[:1]])


def test_another_dtype_is_named_with_the_conversion(toy: Build) -> None:
    with pytest.raises(CalibrationError, match=r"sample 1.*float64.*x.to\(torch.float32\)"):
        run(toy, [X, X.double()])


def test_another_device_is_named_before_capture_and_after(toy: Build) -> None:
    for samples, which in (([X.to("meta")], 0), ([X, X.to("meta")], 1)):
        with pytest.raises(CalibrationError, match=rf"sample {which}.* on meta.*x.to\('cpu'\)"):
            run(toy, samples)


def test_labels_among_the_inputs_are_pointed_out(toy: Build) -> None:
    program = torch.export.export(nn.Linear(8, 4), (X,))
    with pytest.raises(CalibrationError, match=r"has 2 inputs, and the model takes 1.*for images"):
        qcore.quantize(program, toy().set_global("8a8w"), [(X, torch.tensor([1]))])


def test_labels_are_pointed_out_before_a_module_is_captured(toy: Build) -> None:
    with pytest.raises(CalibrationError, match=r"Linear.forward\(input\): too many .*for images"):
        run(toy, [(X, torch.tensor([1]))])


def test_an_array_is_named_with_the_conversion(toy: Build) -> None:
    with pytest.raises(CalibrationError, match=r"holds a ndarray.*torch.as_tensor"):
        run(toy, [X.numpy()])


def test_an_empty_sample_is_named(toy: Build) -> None:
    with pytest.raises(CalibrationError, match=r"is empty: its shape is \(0, 8\)"):
        run(toy, [X[:0]])


def test_a_name_in_place_of_a_quantizer_says_how_to_build_one() -> None:
    with pytest.raises(qcore.QcoreError, match=r"got 'toy'. Build one: qcore.get_quantizer"):
        qcore.quantize(nn.Linear(8, 4), "toy", [X])  # type: ignore[arg-type]


def test_quantizing_nothing_is_an_error_with_every_reason(toy: Build) -> None:
    quantizer = toy().set_global("8a8w")
    with pytest.raises(
        SelectionError, match=r"(?s)Nothing is quantized.*toy has no quantized aten"
    ):
        qcore.quantize(nn.Sigmoid(), quantizer, [X])


def test_forgetting_to_select_is_an_error_that_says_how(toy: Build) -> None:
    with pytest.raises(SelectionError, match=r"no rule was set.*set_global\('8a8w'\)"):
        qcore.quantize(nn.Linear(8, 4), toy(), [X])


def test_the_flow_is_silent_off_a_terminal(
    toy: Build, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    run(toy, [X, 2 * X, 3 * X])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [str(w.message) for w in recwarn if w.category is not DeprecationWarning] == []


def test_progress_can_be_asked_for(toy: Build, capfd: pytest.CaptureFixture[str]) -> None:
    run(toy, [X, 2 * X, 3 * X], progress=True)
    assert "calibrate" in capfd.readouterr().err


def test_each_stage_is_timed(toy: Build) -> None:
    assert list(run(toy, [X]).seconds) == [
        "capture",
        "prepare",
        "calibrate",
        "convert",
        "compare",
    ]
