"""The tutorial tells the truth about its length; ``make outside`` follows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    name: (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name in ("writing-a-backend", "writing-a-compiler")
}


@pytest.mark.parametrize("page", PAGES)
def test_the_lines_that_an_author_writes_are_counted(page: str) -> None:
    text = PAGES[page]
    files = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    lines = [line for file in files for line in file.splitlines() if line.strip()]
    assert f"You write {len(lines)} lines" in text


@pytest.mark.parametrize(("page", "count"), [*zip(PAGES, (8, 7), strict=True)])
def test_the_steps_are_numbered(page: str, count: int) -> None:
    steps = re.findall(r"^## (\d+)\. ", PAGES[page], re.MULTILINE)
    assert steps == [str(number) for number in range(1, count + 1)]


def test_the_tutorial_says_how_many_steps_it_has() -> None:
    assert "in eight steps" in PAGES["writing-a-backend"]
