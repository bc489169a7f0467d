"""The command's entry, and the commands of the core."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from qcore.cli.commands import CommandGroup
from qcore.cli.log import native_noise_hidden
from qcore.cli.options import AsJson, Quiet, answer
from qcore.errors import QcoreWarning
from qcore.registry import backends

__all__ = ["app", "run"]

_NO_BACKEND: Final = (
    "No backend is installed. A backend is a distribution of its own: install one (its wheel or "
    "folder with pip, beside qcore's), or write one, beginning with qcore new-backend NAME."
)

app = typer.Typer(
    cls=CommandGroup,
    help="Quantize PyTorch models for edge backends, each of them a plugin.",
    no_args_is_help=True,
    # Drawing boxes would import rich, which takes longer than everything else.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
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
def list_backends(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the installed backends."""
    found = backends().values()
    lines = [
        f"{info.name}  {'; '.join(info.origins)}"
        + "  (a conflict: uninstall all but one)" * info.is_conflict
        for info in found
    ]
    data = [{"name": info.name, "origins": info.origins} for info in found]
    answer("\n".join(lines) or _NO_BACKEND, data, as_json, quiet)


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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a backend that installs and conforms as it is."""
    from qcore.cli.scaffold import write_backend

    folder = write_backend(name, directory, template)
    text = f"Wrote {folder}. Next:\n  cd {folder}\n  pip install --editable '.[test]'\n  pytest"
    answer(text, {"folder": str(folder)}, as_json, quiet)


def run() -> None:
    """Run the command; warnings of qcore become lines on stderr."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, QcoreWarning):
            typer.echo(f"qcore: warning: {message}", err=True)
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = show
    with native_noise_hidden():
        app(prog_name="qcore")
