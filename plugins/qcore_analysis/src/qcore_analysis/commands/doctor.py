"""``qcore doctor``: whether the installation fits together."""

from __future__ import annotations

from typing import Annotated

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore.report import dump

__all__ = ["doctor"]


def doctor(
    only: Annotated[
        list[str] | None, typer.Argument(help="Distributions to load, as qcore-vgf; or all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Import nothing: versions, conflicts, disk and memory.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what is wrong with the installation, and the command that mends it."""
    from qcore.cli.progress import step
    from qcore_analysis.doctor import diagnose

    with step("loading each plugin on its own", quiet or quick) as over:
        found = diagnose(quick, only or (), over=over)
    ok = f"{'ok' if found.ok else 'BROKEN'}: {len(found.versions)} distributions"
    if found.checked:
        ok += f"; loaded on their own: {', '.join(found.checked)}"
    names = ("torch", "torchao", "executorch", "ethos-u-vela", "tosa-tools")
    versions = [f"{name} {found.versions[name]}" for name in names if name in found.versions]
    told = map(str, (*found.backends, *found.findings))
    lines = [ok, *([", ".join(versions)] if versions else []), *told]
    answer("\n".join(lines), dump(found), as_json, quiet)
    raise typer.Exit(0 if found.ok else 1)
