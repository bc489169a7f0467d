"""The tutorial tells the truth about its length; ``make outside`` follows it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")


def test_the_lines_that_an_author_writes_are_counted() -> None:
    files = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for text in files for line in text.splitlines() if line.strip()]
    assert f"You write {len(lines)} lines." in PAGE


def test_the_steps_are_numbered() -> None:
    steps = re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 9)]
    assert "in eight steps" in PAGE
