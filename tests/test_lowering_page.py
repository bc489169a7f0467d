"""The page for authors of compilers has every operator that can arrive in ``lower``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import lowering_page


def test_the_tables_of_what_lower_receives_are_current() -> None:
    assert lowering_page.main(["--check"]) == 0


def test_an_operator_that_quantizes_and_is_not_on_the_page_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lowering_page, "captured", lambda: iter(()))
    monkeypatch.delitem(lowering_page.MEANING, "quantized_decomposed.choose_qparams.tensor")
    with pytest.raises(AssertionError, match="choose_qparams"):
        lowering_page.main(["--check"])
