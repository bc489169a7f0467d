"""The core is minimal, knows no backend, and no import runs in a circle or climbs back."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import networkx
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from drawing import ROOMS, import_graph, main, room_of  # noqa: E402

PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

# Names of what backends are made of; "arm" as a word, since it is part of "swarm" and "alarm".
FOREIGN = re.compile(r"executorch|xnnpack|vulkan|tosa|vgf|ethos|\.pte\b|\barm\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def imports() -> Any:
    return import_graph("qcore", *(plugin.name for plugin in PLUGINS))


def test_no_import_runs_in_a_circle(imports: Any) -> None:
    circles = [sorted(c) for c in networkx.strongly_connected_components(imports) if len(c) > 1]
    assert circles == []


def test_no_room_of_the_core_imports_one_behind_it(imports: Any) -> None:
    back = [
        f"{module} imports {imported}"
        for module, imported in imports.edges
        if module.startswith("qcore.") and imported.startswith("qcore.")
        if ROOMS.index(room_of(module)) < ROOMS.index(room_of(imported))
    ]
    assert back == []


def test_the_core_imports_no_plugin_and_its_own_front_only_in_tools(imports: Any) -> None:
    core = [(a, b) for a, b in imports.edges if a == "qcore" or a.startswith("qcore.")]
    assert [(a, b) for a, b in core if b != "qcore" and not b.startswith("qcore.")] == []
    front = {room_of(a) for a, b in core if b == "qcore"}
    assert front <= {"testing", "cli"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_what_it_declares(plugin: Path, imports: Any) -> None:
    used = {
        imported.partition(".")[0]
        for module, imported in imports.edges
        if module.partition(".")[0] == plugin.name
    }
    assert used <= {plugin.name} | _declared(plugin.name)


def _declared(package: str) -> set[str]:
    """Return the packages of this project that one needs, directly or not."""
    text = (ROOT / "plugins" / package / "pyproject.toml").read_text(encoding="utf-8")
    needs = tomllib.loads(text)["project"]["dependencies"]
    names = {re.split(r"[^\w-]", need)[0].replace("-", "_") for need in needs}
    plugins = names & {plugin.name for plugin in PLUGINS}
    found = {"qcore"} if "qcore_quant" in names else set()
    return found.union(plugins, *map(_declared, plugins))


def test_the_library_for_executorch_knows_the_core_alone() -> None:
    assert _declared("qcore_executorch") == {"qcore"}


def test_the_core_names_no_backend_not_even_in_a_comment() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "qcore").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert named == []


def test_every_room_says_what_it_is_and_why_it_is_in_the_core() -> None:
    core = ROOT / "qcore"
    found = {
        path.stem if path.is_file() else path.name
        for path in core.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert found == set(ROOMS)
    for room in ROOMS:
        place = core / room / "__init__.py"
        text = (place if place.exists() else core / f"{room}.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{room} says nothing of itself"
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", page, re.MULTILINE)
    assert rows == list(ROOMS)


def test_the_drawing_is_current() -> None:
    assert main(["--check"]) == 0


def test_the_files_that_a_change_touches_are_there() -> None:
    page = (ROOT / "docs" / "extending-the-core.md").read_text(encoding="utf-8")
    table = page[page.index("## What one touches") :]
    today = [row.split("|")[3] for row in re.findall(r"^\| (?!change).+ \|$", table, re.MULTILINE)]
    assert len(today) == 8
    named = [path for cell in today for path in re.findall(r"`([\w./]*/[\w./]*)`", cell)]
    places = [re.sub(r"^plugins/(\w+)/", r"plugins/\1/src/\1/", path) for path in named]
    assert [path for path in places if not (ROOT / path).exists()] == []
