"""``qcore compare``: where accuracy goes."""

from __future__ import annotations

from typing import Annotated

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore_analysis.commands.options import (
    Batch,
    Calibration,
    Data,
    FromRecipe,
    KeepFloat,
    Model,
    Options,
    Pictures,
    Scheme,
    SomeBackend,
    chosen_recipe,
    settings,
)
from qcore_analysis.errors import InputError

__all__ = ["compare"]


def compare(
    model: Model,
    backend: SomeBackend = "",
    calibration: Calibration = "",
    data: Data = "",
    scheme: Scheme = "",
    keep_float: KeepFloat = None,
    batch: Batch = 1,
    pictures: Pictures = "",
    option: Options = None,
    recipe: FromRecipe = None,
    least: Annotated[float, typer.Option(help="Errors below this SQNR in dB are too large.")] = 20,
    execute: Annotated[bool, typer.Option(help="Lower and run the program, too.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say where accuracy goes, stage by stage and module by module."""
    from qcore_analysis.models import load_model
    from qcore_analysis.samples import load_data
    from qcore_analysis.stages import compare_stages

    chosen = chosen_recipe(
        recipe,
        backend=backend,
        data=calibration,
        scheme=scheme,
        options=settings(option),
        keep_float=keep_float or (),
    )
    if not chosen.data or not data:
        raise InputError(
            "Two sets of samples are needed: pass --calibration DATA, and --data DATA with others "
            "to compare on."
        )
    quantizer = chosen.quantizer()
    loaded = load_model(model)
    samples = load_data(chosen.data, batch=batch, pictures=pictures)
    report = compare_stages(
        loaded,
        quantizer,
        samples,
        load_data(data, batch=batch, pictures=pictures),
        algorithms=chosen.algorithms,
        execute=execute,
        least_db=least,
        lowering=chosen.lowering,
        quiet=quiet,
    )
    answer(report, report.to_dict(), as_json, quiet)
