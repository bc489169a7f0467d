"""The command's entry, and its subcommands."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from qcore.errors import QcoreError
from qcore.registry import NO_BACKEND, backends

__all__ = ["app", "run"]

app = typer.Typer(
    help="Quantize PyTorch models for edge backends, each of them a plugin.",
    no_args_is_help=True,
    add_completion=False,
    # Drawing boxes would import rich, which takes longer than everything else.
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcore-quant {version('qcore-quant')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The release.")
    ] = False,
) -> None:
    # With a callback, a lone command would still be called by its name.
    del show_version


@app.command("backends")
def list_backends() -> None:
    """List the installed backends."""
    found = backends()
    if not found:
        typer.echo(NO_BACKEND)
    for info in found.values():
        conflict = "  (a conflict: uninstall all but one)" if info.is_conflict else ""
        typer.echo(f"{info.name}  {'; '.join(info.origins)}{conflict}")


@app.command("new-backend")
def new_backend(
    name: Annotated[str, typer.Argument(help="The backend's name, such as my-npu.")],
    directory: Annotated[
        Path | None,
        typer.Option(help="Where to write it; by default ./qcore-NAME.", show_default=False),
    ] = None,
    template: Annotated[
        str, typer.Option(help="What it is built on; libraries for backends bring others.")
    ] = "torch",
) -> None:
    """Write a backend that installs and conforms as it is."""
    from qcore.cli.scaffold import write_backend

    folder = write_backend(name, directory, template)
    typer.echo(
        f"Wrote {folder}. Next:\n  cd {folder}\n  pip install --editable '.[test]'\n  pytest"
    )


def run() -> None:
    """Run the command; an error of qcore becomes a line on stderr and exit status 1."""
    try:
        app(prog_name="qcore")
    except QcoreError as error:
        typer.echo(f"qcore: {error}", err=True)
        sys.exit(1)
