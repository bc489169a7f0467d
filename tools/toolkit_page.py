"""Writes docs/toolkit.md: every name of the author's toolkit, from ``__all__`` and docstrings.

``python tools/toolkit_page.py`` writes it; with ``--check`` it says whether it is current.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from qcore.testing.support import markdown_table, write_pages

PAGE: Final = Path(__file__).parent.parent / "docs" / "toolkit.md"

#: What backends and what is built on the core may import; each module's ``__all__`` is public.
MODULES: Final = (
    "qcore",
    "qcore.annotation",
    "qcore.annotation.checks",
    "qcore.annotation.forms",
    "qcore.algorithms",
    "qcore.cli.options",
    "qcore.cli.progress",
    "qcore.files",
    "qcore.graph",
    "qcore.control_flow",
    "qcore.plan",
    "qcore.schemes",
    "qcore.formats",
    "qcore.report",
    "qcore.lowering",
    "qcore.lowering.exchange",
    "qcore.lowering.rounding",
    "qcore.lowering.serving",
    "qcore.model_file",
    "qcore.quantizer",
    "qcore.source",
    "qcore.compat",
    "qcore.compat.fakes",
    "qcore.compat.torch",
    "qcore.compat.torchao",
    "qcore.progress",
    "qcore.quiet",
    "qcore.errors",
    "qcore.testing",
    # Libraries for backends that share a compiler.
    "qcore_executorch",
    "qcore_executorch.check",
    "qcore_executorch.clamps",
    "qcore_executorch.doctor",
    "qcore_executorch.graphs",
    "qcore_executorch.inspection",
    "qcore_executorch.kernels",
    "qcore_executorch.mending",
    "qcore_executorch.rewriting",
    "qcore_executorch.veto",
    "qcore_executorch.walk",
    "qcore_tosa",
    "qcore_tosa.artifacts",
    "qcore_tosa.constants",
    "qcore_tosa.lowering",
    "qcore_tosa.positions",
    "qcore_tosa.program",
    "qcore_tosa.reference",
)
_PACKAGES: Final = {name.partition(".")[0] for name in MODULES}

_START: Final = """# The toolkit for authors

What a backend, or anything else that is built on the core, may import from it, beside
[the hooks](hooks.md); at the end, what backends on ExecuTorch may import from `qcore_executorch`,
and those that go by way of TOSA from `qcore_tosa`. [Versions](versioning.md) says how long a name
stays. Names that stand nowhere on this page may change in every release. This page is made of the
code, by `make support`.
"""


def page() -> str:
    """Return the page.

    Raises:
        LookupError: A name says nothing about itself.
    """
    return "\n".join([_START, *map(_section, MODULES)])


def _section(name: str) -> str:
    module = importlib.import_module(name)
    rows = ([f"`{item}`", _summary(module, item)] for item in module.__all__)
    return f"## {name}\n\n{_first_line(module)}\n\n{markdown_table(['name', ''], rows)}\n"


def _summary(module: ModuleType, name: str) -> str:
    """Return what a name says of itself: its docstring, or the comment at its definition."""
    value = getattr(module, name)
    home = str(getattr(value, "__module__", "qcore"))
    if not home.startswith("qcore") and hasattr(value, "__qualname__"):
        return f"As in `{home}`."
    documented = inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)
    text = _first_line(value) if documented else _comment(module, name).replace("``", "`")
    if not text:
        raise LookupError(f"{module.__name__}.{name} has no docstring and no '#:' comment.")
    return text.replace("|", "\\|")


def _first_line(value: Any) -> str:
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return re.sub(r":\w+:`", "`", " ".join(paragraph.split()).replace("``", "`"))


def _comment(module: ModuleType, name: str) -> str:
    """Return the lines with ``#:`` above a constant, or the string below it, where it is made."""
    source = inspect.getsource(module)
    found = re.search(rf"((?:^#: .*\n)+)^{name}\b", source, re.MULTILINE)
    if found is not None:
        return " ".join(line.removeprefix("#: ") for line in found[1].splitlines())
    found = re.search(rf'^{name}\b.*\n"""((?:.|\n)*?)"""', source, re.MULTILINE)
    if found is not None:
        return " ".join(found[1].split())
    found_in = (
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}
    )
    origin = next(found_in, None)
    if origin is None or not origin.startswith("qcore"):
        return f"As in `{origin}`." if origin else ""
    return _comment(importlib.import_module(origin), name)


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Walk the names that a source imports from the core and the libraries.

    Args:
        tree: The parsed source.

    Yields:
        The module and the name. ``qcore.name`` of the package itself counts, too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _PACKAGES:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (a.name, "*")
                for a in node.names
                if a.name.split(".")[0] in _PACKAGES and "." in a.name
            )
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "qcore":
            yield "qcore", node.attr


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where the page is not current.
    """
    return write_pages({PAGE: page()}, arguments, "make support")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
