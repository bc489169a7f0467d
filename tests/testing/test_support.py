"""The support page says what the suite found, and a page that does not is not current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcore.testing import support

FACTS = {
    "npu": {
        "scheme": {"8a8w static per-channel": "runs", "8da8w dynamic per-channel": "converts"},
        "operator": {"linear": "8a8w, 8da8w", "tanh": ""},
        "expected failure": {"pt2e_flow[cond]": "the compiler has no conditionals"},
    },
    "gpu": {"scheme": {"8a8w static per-channel": "verified"}, "operator": {"linear": "8a8w"}},
}


def test_the_page_has_a_column_for_each_backend() -> None:
    made = support.page(FACTS)
    assert "| PT2E scheme | gpu | npu |" in made
    assert "| 8a8w static per-channel | verified | runs |" in made
    assert "| 8da8w dynamic per-channel | — | converts |" in made
    assert "| linear | 8a8w | 8a8w, 8da8w |" in made
    assert "| tanh | — | float |" in made
    assert "- npu, `pt2e_flow[cond]`: the compiler has no conditionals" in made


def test_a_page_that_is_not_current_is_an_error_that_shows_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, target = tmp_path / "facts", tmp_path / "support.md"
    facts.mkdir()
    for backend, found in FACTS.items():
        (facts / f"{backend}.json").write_text(json.dumps({"facts": found}))
    assert support.main([str(facts), str(target)]) == 0
    assert support.main([str(facts), str(target), "--check"]) == 0
    target.write_text(target.read_text().replace("verified |", "runs |"))
    assert support.main([str(facts), str(target), "--check"]) == 1
    said = capsys.readouterr().out
    assert "-| 8a8w static per-channel | runs | runs |" in said
    assert "make support" in said
