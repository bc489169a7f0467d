"""Lines of the core by room, and the drawing of the imports between its rooms.

``python tools/drawing.py`` prints the lines, all of them and those of code alone, and draws into
docs/structure.md, between ``<!-- imports -->`` and ``<!-- end -->``; with ``--check`` it says
whether the drawing is current.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grimp
import networkx

from qcore.testing.support import with_parts, write_pages

__all__ = ["ROOMS", "import_graph", "lines_by_room", "main", "room_of"]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "structure.md"

#: The rooms of the core: each imports those before it, never one behind it.
ROOMS: Final = (
    "errors",
    "files",
    "sharing",
    "quiet",
    "progress",
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
    "accuracy",
    "flow",
    "source",
    "quantizer",
    "testing",
    "cli",
    "__main__",
)

_NO_CODE: Final = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)
_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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


def lines_by_room() -> dict[str, Counter[str]]:
    """Count the lines of each room of the core, ``all`` of them and those of ``code``."""
    core = ROOT / "qcore"
    found = {}
    for room in ROOMS:
        paths = [core / f"{room}.py", *(core / room).rglob("*.py")]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        found[room] = Counter(
            all=sum(len(text.splitlines()) for text in texts), code=sum(map(lines_of_code, texts))
        )
    return found


def lines_of_code(source: str) -> int:
    """Count the lines of a source without those that are blank, a comment or a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return len(lines)


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
    made = with_parts(PAGE, {"imports": drawing(import_graph("qcore"))})
    status = write_pages({PAGE: made}, arguments, "make drawing")
    if "--check" in arguments:
        return status
    lines = lines_by_room()
    driving = [count for room, count in lines.items() if room not in ("testing", "cli")]
    lines["all"] = sum(lines.values(), Counter())
    lines["of it no tool"] = sum(driving, Counter())
    print(" lines    code")
    for room, count in lines.items():
        print(f"{count['all']:6}  {count['code']:6}  {room}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
