"""The support page: schemes and operators by backend, from what the conformance suite found.

``pytest --qcore-facts DIR`` writes what was found; ``python -m qcore.testing.support DIR PAGE``
makes the page, and with ``--check`` says whether it is current.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["main", "markdown_table", "page", "read_facts", "with_parts", "write_pages"]

Facts = Mapping[str, Mapping[str, Mapping[str, str]]]

_INTRODUCTION: Final = """\
# What is supported

This page is made of the results of the conformance suite, by `make support`; a check of the CI
compares it with them. [Writing a backend](writing-a-backend.md) says how the suite is run for
another backend.
"""

_SCHEMES: Final = """\
`8a8w` stands for activations and weights of 8 bits, `8da8w` for activations whose ranges are
measured at run time, `8w` for weights alone. What was seen of each scheme:

- *runs*: a program was lowered, executed by the backend's runner, which may be a reference model
  where no host has the device, and compared with the converted model;
- *verified*: a program was lowered, and what it holds was computed by reference and compared;
- *lowers*: a program was lowered;
- *converts*: a model was converted, and compared with float. A scheme for QAT ends here: how a
  model was trained changes no program. Select it by the name without QAT, and prepare the model
  for training.
"""

_OPERATORS: Final = """\
Each operator was annotated in a small model; the second table has the schemes that quantize it. All
operators that the first scheme of a backend quantizes were then lowered into one program; the first
table has what was seen of it. A backend that is not in it lowers operators in tests of its own.
"""

_MODELS: Final = """\
Small models, each with one thing that is easily got wrong: they are converted with the first scheme
of the backend, and stay close to float. The numbers are compute nodes. *refused* means: part of the
model would stay in float, which this backend does not allow, and the error names that part.
"""


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts of the certificates that ``pytest --qcore-facts`` wrote.

    Args:
        folder: The folder with a JSON file for each backend.

    Returns:
        By backend, by kind, by key.
    """
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["facts"]
        for path in sorted(folder.glob("*.json"))
    }


def page(facts: Facts) -> str:
    """Make the page.

    Args:
        facts: What the suite found out about each backend.

    Returns:
        Markdown.
    """
    facts = {backend: _with_programs(found) for backend, found in facts.items()}
    parts = [
        _INTRODUCTION,
        "## Schemes\n",
        _SCHEMES,
        _table(facts, "scheme", "PT2E scheme", str),
        _table(facts, "source", "`qcore.quantize_`", str),
        "## Operators\n",
        _OPERATORS,
        _table(facts, "program", "all together", str),
        _table(facts, "operator", "operator", _schemes),
        "## Models\n",
        _MODELS,
        _table(facts, "model", "model", str),
        "## Expected failures\n",
        "\n".join(_failures(facts)) + "\n",
    ]
    return "\n".join(part for part in parts if part)


def _with_programs(
    found: Mapping[str, Mapping[str, str]],
) -> Mapping[str, Mapping[str, str]]:
    """Let what was seen of a scheme's program stand for the scheme."""
    schemes = {**found.get("scheme", {}), **found.get("program of a scheme", {})}
    return {**found, "scheme": schemes}


def _schemes(value: str) -> str:
    return value or "float"


def _table(facts: Facts, kind: str, title: str, shown: Callable[[str], str]) -> str:
    backends = sorted(facts)
    found = {backend: facts[backend].get(kind, {}) for backend in backends}
    # Sorted by name: facts come in the order in which checks happen to run.
    keys = sorted({key for values in found.values() for key in values})
    if not keys:
        return ""
    rows = (
        [key, *(shown(found[b][key]) if key in found[b] else "—" for b in backends)] for key in keys
    )
    return markdown_table([title, *backends], rows)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown.

    Args:
        titles: Of the columns.
        rows: Their cells.

    Returns:
        The table, ending with a line break.
    """
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _failures(facts: Facts) -> Iterator[str]:
    said = False
    for backend in sorted(facts):
        for check, reason in sorted(facts[backend].get("expected failure", {}).items()):
            said = True
            yield f"- {backend}, `{check}`: {reason}"
    if not said:
        yield "None."


def main(arguments: list[str]) -> int:
    """Write the page, or check that it is current.

    Args:
        arguments: The folder with the facts, the page, and perhaps ``--check``.

    Returns:
        The exit status: 1 where the page is not current.
    """
    folder, target = (Path(a) for a in arguments if a != "--check")
    return write_pages({target: page(read_facts(folder))}, arguments, "make support")


def with_parts(page: Path, parts: Mapping[str, str]) -> str:
    """Return the text of a page with parts of it made anew.

    Args:
        page: The file.
        parts: What stands between ``<!-- NAME -->`` and ``<!-- end -->``, by name.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        text = before + start + part + rest[rest.index("<!-- end -->") :]
    return text


def write_pages(pages: Mapping[Path, str], arguments: Sequence[str], command: str) -> int:
    """Write files that are made of something else, or say what is not current.

    Args:
        pages: Text by file.
        arguments: Of the command line; ``--check`` compares the files, and writes none.
        command: What writes them.

    Returns:
        The exit status: 1 where a file is not current.
    """
    status = 0
    for path, made in pages.items():
        if "--check" not in arguments:
            path.write_text(made, encoding="utf-8")
            continue
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        if kept != made:
            lines = kept.splitlines(), made.splitlines()
            changes = difflib.unified_diff(*lines, str(path), "what it is made of", lineterm="")
            print("\n".join([*changes, f"{path} is not current. Write it again with: {command}"]))
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
