"""``qcore compare``: where accuracy goes."""

from __future__ import annotations

from typing import Annotated

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore_analysis.commands.options import (
    Batch,
    Calibration,
    Data,
    Everything,
    FromRecipe,
    KeepFloat,
    Method,
    Model,
    Options,
    Pictures,
    Scheme,
    SomeBackend,
    check_both_sets,
    chosen_recipe,
    load_torch,
    read,
)

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
    method: Method = "",
    option: Options = None,
    recipe: FromRecipe = None,
    least: Annotated[float, typer.Option(help="Errors below this SQNR in dB are too large.")] = 20,
    execute: Annotated[bool, typer.Option(help="Lower and run the program, too.")] = True,
    executed_modules: Annotated[
        bool,
        typer.Option(
            "--executed-modules", help="Measure each module as executed, too: lowers once more."
        ),
    ] = False,
    everything: Everything = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say where accuracy goes, stage by stage and module by module."""
    load_torch(quiet)
    from qcore_analysis.stages import compare_stages

    chosen = chosen_recipe(
        recipe,
        backend=backend,
        data=calibration,
        scheme=scheme,
        pictures=pictures,
        calibration=method,
        batch=batch,
        option=option,
        keep_float=keep_float,
    )
    quantizer = chosen.quantizer()
    check_both_sets(chosen.data, data)
    loaded, (samples, others) = read(
        model, chosen.data, data, batch=chosen.batch, pictures=chosen.pictures, quiet=quiet
    )
    report = compare_stages(
        loaded,
        quantizer,
        samples,
        others,
        algorithms=chosen.algorithms,
        execute=execute,
        executed_modules=executed_modules,
        least_db=least,
        lowering=chosen.lowering,
        quiet=quiet,
    )
    answer(report.to_text(all_modules=everything), report.to_dict(), as_json, quiet)
