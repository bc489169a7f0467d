"""Writes docs/mutants.md: the defects that the tests of the suite plant, and what catches each.

``python tools/mutants_page.py`` writes it; with ``--check`` it says whether it is current.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Final

from qcore.testing.support import markdown_table, write_pages

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "mutants.md"

_START: Final = """# Defects that the conformance suite catches

Each of these is planted in one of the examples, `portable`, which lowers to a compiler of others,
or `integer`, which has a compiler, a file format and an interpreter of its own. The check named
beside it must fail with a message that matches; a test asks for all of them. This page is made of
the tests, by `python tools/mutants_page.py`.
"""


def page() -> str:
    """Return the page."""
    sys.path[:0] = [
        str(ROOT / folder)
        for folder in ("tests/testing", "examples/qcore_integer/src", "examples/qcore_portable/src")
    ]
    defects = importlib.import_module("mutants").DEFECTS

    modules = {d.backend.__module__: None for d in defects.values()}
    parts = [_START]
    for module in modules:
        found = {n: d for n, d in defects.items() if d.backend.__module__ == module}
        rows = (
            [_words(name), defect.base, f"`{defect.check.name}`", f"`{_fragment(defect.says)}`"]
            for name, defect in found.items()
        )
        said = (sys.modules[module].__doc__ or "").split("\n")[0].rstrip(".")
        titles = ["The backend", "in", "caught by", "its message"]
        parts += [f"## {said}\n", markdown_table(titles, rows)]
    return "\n".join(parts)


def _words(name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z0-9])(?=[A-Z][a-z])", " ", name)
    return words.lower().replace("relu 6", "relu6")


def _fragment(says: str) -> str:
    """Return a pattern as the text that it stands for, with dots for what may be any."""
    said = re.sub(r"(\.|\\[dw])[*+]|\\[dw]", "…", says)
    return re.sub(r"\\(.)", r"\1", said).replace("|", " or ")


def main(arguments: list[str]) -> int:
    """Write the page, or check that it is current.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where the page is not current.
    """
    return write_pages({PAGE: page()}, arguments, "python tools/mutants_page.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
