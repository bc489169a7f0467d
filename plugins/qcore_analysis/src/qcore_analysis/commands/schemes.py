"""``qcore schemes``: what a backend executes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import qcore
from qcore.cli.options import AsJson, Quiet, answer
from qcore.report import dump
from qcore_analysis.commands.answers import Schemes
from qcore_analysis.commands.options import Options, settings

__all__ = ["schemes", "schemes_of"]

_TITLES: Final = {"pt2e": "qcore.quantize", "quantize_": "qcore.quantize_"}


def schemes(
    backend: Annotated[str, typer.Argument(help="An installed backend.")],
    option: Options = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the schemes that a backend executes."""
    found = (None if option else _written(backend)) or schemes_of(backend, settings(option))
    lines = [
        line
        for key, title in _TITLES.items()
        if found[key]
        for line in (f"{title}:", *(f"  {scheme}" for scheme in found[key]))
    ]
    answer(
        "\n".join(lines),
        dump(Schemes(backend, tuple(found["pt2e"]), tuple(found["quantize_"]))),
        as_json,
        quiet,
    )


def schemes_of(backend: str, options: dict[str, Any]) -> dict[str, list[str]]:
    """Ask a backend for its schemes, which imports it.

    Args:
        backend: Its name.
        options: Options of its class.

    Returns:
        The schemes of ``qcore.quantize`` and those of ``qcore.quantize_``, each once.
    """
    quantizer = qcore.get_quantizer(backend, **options)
    offered = {"pt2e": quantizer.supported_schemes, "quantize_": quantizer.source_schemes}
    return {
        key: list(dict.fromkeys(str(s) for s in schemes if not s.is_qat))
        for key, schemes in offered.items()
    }


def _written(backend: str) -> dict[str, list[str]] | None:
    """Return what a backend's distribution has written down, which is quicker than asking it.

    The file is ``schemes.json`` in the package that the backend's entry point names.
    """
    info = qcore.backends().get(backend)
    named = re.search(r"\((\w+)", info.origins[0]) if info and not info.is_conflict else None
    spec = importlib.util.find_spec(named[1]) if named else None
    file = Path(spec.origin).with_name("schemes.json") if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    found: dict[str, dict[str, list[str]]] = json.loads(file.read_text("utf-8"))
    return found.get(backend)
