"""What ``make matrix`` answers where an environment fails, or cannot be made."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "matrix.py"))
Row = TOOL["Row"]
GOOD: dict[str, Any] = {"passed": 3, "seconds": 1.0}
UNMADE: dict[str, Any] = {"reason": "not made: pip: no space"}
LACKING: dict[str, Any] = {"reason": "not made: there is no python3.13 here", "lacking": True}


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(outcome: dict[str, Any], *arguments: str) -> int:
        def tested(environment: Any, *_: Any) -> Any:
            return Row(environment, **(outcome if environment.python == "3.13" else GOOD))

        monkeypatch.setitem(TOOL["main"].__globals__, "tested", tested)
        monkeypatch.setattr(sys, "argv", ["matrix.py", *arguments])
        return int(TOOL["main"]())

    return run


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(GOOD, 0), (UNMADE, 1), ({"failed": ["one"], "seconds": 1.0}, 1), (LACKING, 0)],
)
def test_what_fails_or_cannot_be_made_is_a_failure(
    outcome: dict[str, Any], expected: int, status: Callable[..., int]
) -> None:
    assert status(outcome) == expected


def test_a_python_that_the_machine_lacks_is_said_and_fails_where_all_are_required(
    status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(LACKING, "--require-all") == 1
    assert "NOT TRIED: Python 3.13, ExecuTorch" in capsys.readouterr().err


def test_a_smoke_has_what_is_made_within_seconds_and_says_what_it_left_out(
    status: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = TOOL["environments"]()
    monkeypatch.setattr(type(first), "folder", Path("nowhere"))
    assert status(GOOD, "--smoke") == 0
    said = capsys.readouterr()
    quick = [e for e in others if e.python == first.python]
    assert len(quick) == 1
    for environment in others:
        assert (str(environment) in said.out) is (environment in quick)
        assert (f"NOT TRIED: {environment}" in said.err) is (environment not in quick)
