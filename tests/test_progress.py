"""What long work shows on a terminal."""

import time
from typing import Any

import pytest
import torch

import qcore
from qcore import quantizer as quantizer_module
from qcore.progress import showing_stages, stage

SHARES = {"export": 1.0, "emit": 3.0}


def shown(progress: bool | None, capsys: pytest.CaptureFixture[str]) -> str:
    seconds: dict[str, float] = {}
    with showing_stages("lower", SHARES, progress):
        for name in ("export", "mend", "emit"):
            with stage(name, seconds):
                pass
    assert list(seconds) == ["export", "mend", "emit"]
    return capsys.readouterr().err


def test_stages_are_named_with_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(True, capsys).split("\r")
    assert "lower: export, 00:00 so far, ? left" in lines
    assert "lower: mend, 00:00 so far, 00:00 left" in [line.rstrip() for line in lines]
    assert lines[-1].strip() == ""


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_shown_where_nobody_looks(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(progress, capsys) == ""


def test_a_stage_that_comes_again_adds_to_its_time() -> None:
    seconds = {"check": 5.0}
    with stage("check", seconds):
        pass
    assert seconds["check"] > 5.0


def test_work_inside_of_work_is_shown_as_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_stages("matrix", {"lower": 1}, True), stage("lower", {}):
        shown(True, capsys)
        with stage("run", {}):
            assert "matrix: run" in capsys.readouterr().err


def test_the_time_goes_on_while_a_stage_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_stages("lower", SHARES, True):
        time.sleep(1.2)
    assert "00:01 so far" in capsys.readouterr().err


def test_the_stages_of_a_lowering_are_the_backends_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, float]] = []
    theirs = quantizer_module.showing_stages

    def showing(work: str, shares: dict[str, float], progress: bool | None) -> Any:
        shown.append(shares)
        return theirs(work, shares, progress)

    monkeypatch.setattr(quantizer_module, "showing_stages", showing)
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    model = qcore.quantize(torch.nn.Linear(4, 4), quantizer, [torch.rand(2, 4)]).model
    quantizer.lower(model, torch.rand(2, 4), check=False)
    assert shown == [{"export": 0.1, **quantizer.backend.stages}]
