"""What every command takes and how it answers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "Quiet", "answer"]

#: The option ``--json``.
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, on standard output.")]

#: The option ``--quiet``.
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and JSON.")]


def answer(text: object, data: Any, as_json: bool, quiet: bool) -> None:
    """Print what a command found, on standard output.

    Args:
        text: For people.
        data: The same as plain data, for programs.
        as_json: Whether a program asks.
        quiet: Whether nobody wants the text.
    """
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    elif not quiet:
        typer.echo(str(text))
