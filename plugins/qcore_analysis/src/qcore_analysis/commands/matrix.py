"""``qcore matrix``: one model on several backends."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore_analysis.commands.options import (
    Batch,
    Calibration,
    Data,
    FromRecipe,
    KeepFloat,
    Model,
    Pictures,
    check_both_sets,
    chosen_recipe,
    load_torch,
    read,
    settings,
)
from qcore_analysis.errors import InputError

__all__ = ["matrix"]


def matrix(
    model: Model,
    backends: Annotated[str, typer.Option(help="Names of backends, with commas between.")],
    calibration: Calibration = "",
    data: Data = "",
    scheme: Annotated[list[str] | None, typer.Option(help="A scheme to try on each.")] = None,
    batch: Batch = 1,
    pictures: Pictures = "",
    keep_float: KeepFloat = None,
    recipe: FromRecipe = None,
    metric: Annotated[
        str, typer.Option(help="package.module:function, from all outputs to a number.")
    ] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="As ethosu.target=ethos-u85-256, for one backend.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds that each row may take.", min=1)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare backends: a row for each, a failure is a row with its reason."""
    load_torch(quiet)
    from qcore_analysis.backends import BackendRow, compare_backends
    from qcore_analysis.models import imported

    names = [name.strip() for name in backends.split(",") if name.strip()]
    if not names:
        raise InputError("No backends: pass --backends a,b; qcore backends lists what there is.")
    options: dict[str, dict[str, Any]] = {}
    for name, value in settings(option).items():
        backend, dot, key = name.partition(".")
        if not dot:
            raise InputError(f"Whose option is {name!r}? Write BACKEND.{name}={value}.")
        if backend not in names:
            raise InputError(f"{name} is of no backend in --backends {backends}. Add {backend}.")
        options.setdefault(backend, {})[key] = value
    chosen = chosen_recipe(
        recipe,
        backend="" if recipe else names[0],
        data=calibration,
        pictures=pictures,
        batch=batch,
        option=None,
        keep_float=keep_float,
    )
    check_both_sets(chosen.data, data)
    loaded, (samples, others) = read(
        model, chosen.data, data, batch=chosen.batch, pictures=chosen.pictures, quiet=quiet
    )
    measure = imported(metric, "metric", call=False) if metric else None

    taken: list[float] = []
    rows = len(names) * max(len(scheme or ()), 1)

    def tell(row: BackendRow) -> None:
        taken.append(row.seconds)
        if not quiet:
            came = f"failed, {row.failure}" if row.failure else "done"
            left = sum(taken) / len(taken) * (rows - len(taken))
            rest = f"; {len(taken)} of {rows}, {left:.0f} s left" * (len(taken) < rows)
            typer.echo(f"{row.backend}: {came} ({row.seconds:.1f} s{rest})", err=True)

    report = compare_backends(
        loaded,
        names,
        samples,
        others,
        schemes=tuple(scheme or ()),
        options=options,
        recipe=chosen,
        metric=measure,
        time_limit=time_limit,
        on_row=tell,
        quiet=quiet,
    )
    answer(report, report.to_dict(), as_json, quiet)
    raise typer.Exit(int(all(row.failure for row in report.rows)))
