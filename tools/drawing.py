"""Lines of the core by room, and the drawing of the imports between its rooms.

``python tools/drawing.py`` prints the lines and draws into docs/structure.md, between
``<!-- imports -->`` and ``<!-- end -->``; with ``--check`` it says whether the drawing is current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grimp
import networkx

__all__ = ["ROOMS", "import_graph", "lines_by_room", "main", "room_of"]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "structure.md"

#: The rooms of the core: each imports those before it, never one behind it.
ROOMS: Final = (
    "errors",
    "files",
    "sharing",
    "quiet",
    "compat",
    "hookspecs",
    "registry",
    "graph",
    "names",
    "capture",
    "control_flow",
    "formats",
    "training",
    "calibration",
    "configs",
    "grammar",
    "schemes",
    "plan",
    "report",
    "annotation",
    "algorithms",
    "lowering",
    "model_file",
    "backend",
    "pt2e",
    "flow",
    "source",
    "quantizer",
    "testing",
    "cli",
    "__main__",
)

_DRAWING: Final = re.compile(r"(<!-- imports -->\n).*?(<!-- end -->)", re.DOTALL)


def import_graph(*packages: str) -> Any:
    """Return who imports whom, lazily or not; what only type checkers read is left out.

    Args:
        *packages: Installed packages.

    Returns:
        A ``networkx.DiGraph`` of modules.
    """
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    found = networkx.DiGraph()
    found.add_nodes_from(graph.modules)
    found.add_edges_from(
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )
    return found


def room_of(module: str) -> str:
    """Return the room that a module of the core is in; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def lines_by_room() -> dict[str, int]:
    """Count the lines of each room of the core."""
    core = ROOT / "qcore"
    return {
        room: sum(
            len(path.read_text(encoding="utf-8").splitlines())
            for path in (core / f"{room}.py", *(core / room).rglob("*.py"))
            if path.exists()
        )
        for room in ROOMS
    }


def drawing(imports: Any) -> str:
    """Draw the imports between rooms in Mermaid, those left out that follow from others."""
    rooms = networkx.DiGraph(
        (room_of(a), room_of(b)) for a, b in imports.edges if room_of(a) != room_of(b)
    )
    rooms.remove_nodes_from([room for room in list(rooms) if room not in ROOMS])
    arrows = sorted(networkx.transitive_reduction(rooms).edges, key=_places)
    return "\n".join(["```mermaid", "graph BT", *_arrows(arrows), "```", ""])


def _places(arrow: Iterable[str]) -> list[int]:
    return [ROOMS.index(room) for room in arrow]


def _arrows(arrows: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"  {importer} --> {imported}" for importer, imported in arrows)


def main(arguments: Sequence[str]) -> int:
    """Print the lines and draw, or compare the drawing.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where the drawing is not current.
    """
    kept = PAGE.read_text(encoding="utf-8")
    made = _DRAWING.sub(rf"\1{drawing(import_graph('qcore'))}\2", kept)
    if "--check" in arguments:
        if made != kept:
            print(f"{PAGE.name} is not current. Draw it again with: make drawing")
        return int(made != kept)
    PAGE.write_text(made, encoding="utf-8")
    lines = lines_by_room()
    driving = sum(count for room, count in lines.items() if room not in ("testing", "cli"))
    for room, count in {**lines, "all": sum(lines.values()), "of it no tool": driving}.items():
        print(f"{count:6}  {room}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
