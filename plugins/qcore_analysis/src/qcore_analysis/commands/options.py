"""Options that several commands have."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from qcore_analysis.errors import InputError

__all__ = ["Backend", "Batch", "Data", "Model", "Options", "Pictures", "Shapes", "settings"]

Model = Annotated[str, typer.Argument(help="A .pt2 file, or package.module:factory.")]
Backend = Annotated[str, typer.Option("--backend", "-b", help="An installed backend.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="A .safetensors, .npz or .pt file, a folder of pictures, or package.module:iterable.",
    ),
]
Batch = Annotated[int, typer.Option(help="Rows of a file of tensors that make one sample.")]
Pictures = Annotated[
    str, typer.Option(help='What a model does to pictures: "size=224 mean=127 std=128".')
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the backend, such as target=ethos-u85-256."),
]
Shapes = Annotated[
    list[str] | None, typer.Option("--input-shape", help="Shape of an input, 1x3x224x224.")
]


def settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Read ``NAME=VALUE`` pairs.

    Args:
        texts: The pairs; a value that is a Python literal is read as one, others are text.

    Returns:
        Value by name.

    Raises:
        InputError: One is no pair.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{text!r} is no option. Write NAME=VALUE.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
