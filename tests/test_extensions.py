"""Extensions wrap the hooks of every backend; the two examples do what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import UnsupportedSchemeError
from qcore.quantizer import Quantizer
from qcore_example_extensions import timing

Install = Callable[..., None]
Build = Callable[[], Quantizer]

TIMES = {"hook-times": "qcore_example_extensions.timing:HookTimes"}
VETO = {"veto": "qcore_example_extensions.veto:Veto"}


def quantized(quantizer: Quantizer) -> qcore.QuantizedModel:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    return qcore.quantize(model, quantizer, [torch.arange(4.0).reshape(1, 4)])


def test_every_hook_is_timed(install: Install, toy: Build) -> None:
    install("qcore-example-extensions", "unused", "", group="qcore.extensions", **TIMES)
    timing.SECONDS.clear()
    timing.CALLS.clear()
    quantizer = toy().set_global("8a8w")
    result = quantized(quantizer)
    with pytest.raises(qcore.QcoreError, match="toy lowers nothing"):
        quantizer.lower(result.model, (torch.ones(1, 4),))
    assert timing.CALLS == {
        "supported_schemes": 1,
        "transform_for_annotation": 1,
        "annotate": 1,
        "validate_partial": 1,
        "lower": 1,
    }
    assert min(timing.SECONDS.values()) > 0
    assert "annotate" in timing.summary()


def test_a_timed_hook_gives_what_it_gave_before(install: Install, toy: Build) -> None:
    plain = quantized(toy().set_global("8a8w")).report
    install("qcore-example-extensions", "unused", "", group="qcore.extensions", **TIMES)
    assert quantized(toy().set_global("8a8w")).report == plain


def test_a_vetoed_scheme_is_refused_and_the_others_are_offered(
    install: Install, toy: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("qcore-example-extensions", "unused", "", group="qcore.extensions", **VETO)
    monkeypatch.setenv("QCORE_VETO", "8da8w, 4w")
    quantizer = toy()
    assert {scheme.name for scheme in quantizer.supported_schemes} == {"8a8w"}
    with pytest.raises(UnsupportedSchemeError, match="toy does not execute 8da8w"):
        quantizer.set_global("8da8w")
    assert quantized(quantizer.set_global("8a8w")).report.quantized


def test_a_veto_of_everything_says_what_to_change(
    install: Install, toy: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("qcore-example-extensions", "unused", "", group="qcore.extensions", **VETO)
    monkeypatch.setenv("QCORE_VETO", "8da8w,8a8w")
    with pytest.raises(UnsupportedSchemeError, match="vetoes every scheme.*uninstall"):
        toy()


def test_without_the_variable_nothing_is_vetoed(
    install: Install, toy: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = toy().supported_schemes
    install("qcore-example-extensions", "unused", "", group="qcore.extensions", **VETO)
    monkeypatch.delenv("QCORE_VETO", raising=False)
    assert toy().supported_schemes == declared


def test_a_distribution_gives_a_name_of_qcore(install: Install) -> None:
    home = "qcore_example_extensions.timing:HookTimes"
    install("qcore-example-extensions", "unused", "", group="qcore.names", HookTimes=home)
    assert qcore.HookTimes is timing.HookTimes
    vars(qcore).pop("HookTimes")
