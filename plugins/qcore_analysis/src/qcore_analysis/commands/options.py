"""Options that several commands have."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from qcore_analysis.errors import InputError

if TYPE_CHECKING:
    from qcore_analysis.recipe import Recipe

__all__ = [
    "Batch",
    "Calibration",
    "Data",
    "Everything",
    "FromRecipe",
    "KeepFloat",
    "Method",
    "Model",
    "Options",
    "Pictures",
    "Scheme",
    "Shapes",
    "SomeBackend",
    "check_both_sets",
    "chosen_recipe",
    "load_torch",
    "read",
    "settings",
]

Model = Annotated[str, typer.Argument(help="A .pt2 file, or package.module:factory.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="A .safetensors, .npz or .pt file, a folder of pictures, or package.module:iterable.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Rows of a file of tensors that make one sample.")]
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


Scheme = Annotated[str, typer.Option(help="A scheme's name; by default the backend's first.")]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(help="A module that stays in float; * within a component, ** across."),
]
Method = Annotated[str, typer.Option(help="How ranges are chosen.")]
FromRecipe = Annotated[Path | None, typer.Option(help="Take what is not said here from it.")]
Everything = Annotated[bool, typer.Option("--all", help="List all, and not the first of many.")]
SomeBackend = Annotated[str, typer.Option("--backend", "-b", help="An installed backend.")]
Calibration = Annotated[
    str, typer.Option("--calibration", help="Samples to choose ranges with: DATA, as --data.")
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


def chosen_recipe(
    path: Path | None,
    *,
    keep_float: Iterable[str] | None,
    option: Iterable[str] | None,
    batch: int = 1,
    **choices: str,
) -> Recipe:
    """Return the recipe of a file with what the command line says in its place.

    Args:
        path: The file; None begins with nothing.
        keep_float: Names of modules.
        option: Options of the backend, as ``NAME=VALUE``.
        batch: Rows of a sample; 1 is not said.
        **choices: Other fields of the recipe; what is empty is not said.

    Returns:
        The recipe.

    Raises:
        InputError: Neither says the backend.
        RecipeError: The file is no recipe.
    """
    from qcore_analysis.recipe import IN_FLOAT, Recipe, RecipeRule

    given: dict[str, Any] = {name: value for name, value in choices.items() if value}
    if path is None and "backend" not in given:
        raise InputError("No backend: pass --backend NAME; qcore backends lists what is installed.")
    base = Recipe(given["backend"]) if path is None else Recipe.read(path)
    added = tuple(RecipeRule("module_name", IN_FLOAT, name) for name in keep_float or ())
    return attrs.evolve(
        base,
        **given,
        batch=base.batch if batch == 1 else batch,
        options={**base.options, **settings(option)},
        rules=(*base.rules, *added),
    )


def load_torch(quiet: bool) -> None:
    """Import what takes seconds, and say so; before the modules that need it."""
    from qcore.cli.progress import step

    with step("loading PyTorch", quiet, of=sys.prefix):
        import_module("torch")


def read(
    model: str, *sets: str, batch: int, pictures: str, quiet: bool
) -> tuple[Any, list[list[Any]]]:
    """Read a model and sets of samples, as the command line names them, and show that it is done.

    Args:
        model: The model.
        *sets: The sets.
        batch: Rows of a file of tensors that make one sample.
        pictures: What a model does to pictures.
        quiet: Whether to show nothing.

    Returns:
        The model, and the samples of each set.

    Raises:
        InputError: One cannot be read.
    """
    from qcore.cli.progress import step
    from qcore_analysis.models import load_model
    from qcore_analysis.samples import load_data

    with step("reading the model and the data", quiet, of=", ".join((model, *sets))):
        loaded = load_model(model)
        return loaded, [load_data(one, batch=batch, pictures=pictures) for one in sets]


def check_both_sets(calibration: str, data: str) -> None:
    """Raise where the samples to calibrate with or those to compare on are not named.

    Raises:
        InputError: One is not.
    """
    if not calibration or not data:
        raise InputError(
            "Two sets of samples are needed: pass --calibration DATA, and --data DATA with others "
            "to compare on."
        )
