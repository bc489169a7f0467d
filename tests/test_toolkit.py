"""Plugins and examples import what the core and the libraries declare; a page lists all of that."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toolkit_page", ROOT / "tools/toolkit_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()
SOURCES = sorted((*ROOT.glob("plugins/*/src/**/*.py"), *ROOT.glob("examples/**/*.py")))
PUBLIC = {name: frozenset(importlib.import_module(name).__all__) for name in TOOL.MODULES}


def undeclared(source: str, own: str = "") -> list[str]:
    """Return what a source imports from the core and the libraries that is not declared.

    A library imports from itself what it likes.
    """
    found = TOOL.imports(ast.parse(source))
    return [
        f"{module}.{name}"
        for module, name in found
        if module.partition(".")[0] != own
        if name not in PUBLIC.get(module, ()) and f"{module}.{name}" not in PUBLIC
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_imports_what_is_declared(path: Path) -> None:
    own = path.relative_to(ROOT).parts[3] if "plugins" in path.parts else ""
    assert undeclared(path.read_text(encoding="utf-8"), own) == []


@pytest.mark.parametrize(
    "source",
    [
        "from qcore.annotation.annotate import _float",
        "from qcore.annotation.rules import annotation_of",
        "import qcore.pt2e",
        "import qcore\nqcore.pt2e.PreparedModel",
        "from qcore_executorch.mending import _CULPRITS",
        "from qcore_tosa.forms import TOSA_FORMS",
        "import qcore_tosa.bodies",
    ],
)
def test_what_is_not_declared_is_noticed(source: str) -> None:
    assert len(undeclared(source)) == 1


def test_the_page_has_a_row_for_every_name_and_no_other() -> None:
    page = TOOL.PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    rows = {
        name: re.findall(r"^\| `(\w+)` \| .+ \|$", text, re.M) for name, text in sections.items()
    }
    assert {name: sorted(found) for name, found in rows.items()} == {
        name: sorted(names) for name, names in PUBLIC.items()
    }, "Write it again with: make support"
