"""One model on several backends: one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import attrs

from qcore.errors import QcoreError
from qcore.report import LoweringReport, Report, as_text
from qcore_analysis.causes import cause_of
from qcore_analysis.errors import TimeLimitError
from qcore_analysis.recipe import Recipe
from qcore_analysis.samples import called
from qcore_analysis.stages import Compared, compare
from qcore_analysis.time_limit import time_limit as limited_to

__all__ = ["BackendReport", "BackendRow", "compare_backends"]

Metric = Callable[[Sequence[Any]], float]


@attrs.frozen
class BackendRow:
    """A model on one backend with one scheme.

    Attributes:
        backend: The backend's name.
        scheme: The scheme.
        failure: Why there is nothing else; empty where it worked.
        quantized: Compute nodes that are quantized.
        compute_nodes: All compute nodes.
        delegates: Delegates in the program.
        delegated: Compute nodes of the program inside them.
        undelegated: Compute nodes outside of them.
        converted_db: SQNR of the converted model against float, in decibels.
        executed_db: SQNR of what was executed; null where nothing was.
        metric: What the caller's function says of the outputs that were executed.
        program_bytes: Size of the program.
        latency_ms: Median time of one run on this machine; null where a device's is another.
        cycles: Cycles of one inference as the compiler estimates them; null where none does.
        sram_bytes: SRAM in bytes that the compiler plans; null where none does.
        executed_by: What executed it; "nobody" where no host can.
        loss: The module that loses most, and how much.
        cause: What loses it: rounding of weights, rounding and clipping of the value, or the
            execution; empty where nothing is lost.
        seconds: Time that the row took.
    """

    backend: str
    scheme: str
    failure: str = ""
    quantized: int = 0
    compute_nodes: int = 0
    delegates: int = 0
    delegated: int = 0
    undelegated: int = 0
    converted_db: float | None = None
    executed_db: float | None = None
    metric: float | None = None
    program_bytes: int = 0
    latency_ms: float | None = None
    cycles: int | None = None
    sram_bytes: int | None = None
    executed_by: str = "nobody"
    loss: str = ""
    cause: str = ""
    seconds: float = 0.0


@attrs.frozen
class BackendReport(Report):
    """One model on several backends.

    Attributes:
        samples: How many samples were compared.
        rows: One for each backend and scheme.
    """

    kind: ClassVar[str] = "backends"

    samples: int = 0
    rows: tuple[BackendRow, ...] = ()


def compare_backends(
    model: Any,
    backends: Iterable[str],
    calibration_data: Iterable[Any],
    evaluation_data: Iterable[Any],
    *,
    schemes: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    recipe: Recipe | None = None,
    metric: Metric | None = None,
    time_limit: float | None = None,
    on_row: Callable[[BackendRow], object] = lambda row: None,
    quiet: bool = True,
) -> BackendReport:
    """Quantize a model for several backends and put what came of it into one table.

    Args:
        model: A ``torch.nn.Module`` in evaluation mode or an ``ExportedProgram``; never changed.
        backends: Names of backends.
        calibration_data: Samples to choose ranges with.
        evaluation_data: Samples to compare on.
        schemes: Schemes to try on each; none takes the first of each backend.
        options: Options of the backends' classes, by backend.
        recipe: What holds for each backend: scheme, rules, how ranges are chosen, algorithms. Its
            options are those of its own backend.
        metric: From the outputs of all samples, as the program returns them, to a figure.
        time_limit: Seconds that each row may take; None for any. Needs the main thread.
        on_row: Called with each row when it is ready.
        quiet: Whether to show no stages on a terminal.

    Returns:
        The table. A backend that fails is a row with its reason.
    """
    calibration, evaluation = list(calibration_data), list(evaluation_data)
    rows = []
    for name in backends:
        for scheme in schemes or ("",):
            chosen = _chosen(recipe, name, scheme, (options or {}).get(name, {}))
            start = time.perf_counter()
            try:
                with limited_to(time_limit):
                    row = _row(model, chosen, calibration, evaluation, metric, quiet)
            except TimeLimitError as error:
                row = BackendRow(name, scheme, failure=str(error))
            rows.append(attrs.evolve(row, seconds=time.perf_counter() - start))
            on_row(rows[-1])
    return BackendReport("all", len(evaluation), tuple(rows))


def _chosen(recipe: Recipe | None, name: str, scheme: str, options: Mapping[str, Any]) -> Recipe:
    """Return the choices for one backend."""
    chosen = recipe or Recipe(name)
    if chosen.backend != name:
        chosen = attrs.evolve(chosen, backend=name, options={}, lowering={})
    return attrs.evolve(
        chosen, scheme=scheme or chosen.scheme, options={**chosen.options, **options}
    )


def _row(
    model: Any,
    chosen: Recipe,
    calibration: list[Any],
    evaluation: list[Any],
    metric: Metric | None,
    quiet: bool,
) -> BackendRow:
    name = chosen.backend
    try:
        quantizer = chosen.quantizer()
        if chosen.is_source(quantizer):
            offered = ", ".join(dict.fromkeys(s.name for s in quantizer.source_schemes))
            raise QcoreError(
                f"{name} has schemes of qcore.quantize_ alone ({offered}), which treats weights "
                "before the model is captured. Use that for it."
            )
        scheme = chosen.scheme or str(quantizer.supported_schemes[0])
        compared = compare(
            model,
            quantizer,
            calibration,
            evaluation,
            algorithms=chosen.algorithms,
            execute=True,
            least_db=20.0,
            lowering=chosen.lowering,
            quiet=quiet,
        )
        return _measured(name, scheme, compared, evaluation, metric)
    except Exception as error:  # Whatever stops one backend, the others have their rows.
        reason = str(error) if isinstance(error, QcoreError) else f"{type(error).__name__}: {error}"
        return BackendRow(name, chosen.scheme, failure=reason)


def _measured(
    name: str, scheme: str, compared: Compared, evaluation: list[Any], metric: Metric | None
) -> BackendRow:
    program, annotated = compared.program, compared.result.report
    assert program is not None
    lowered: LoweringReport = program.report
    by_name = {record.name: record for record in compared.report.stages}
    cycles = getattr(lowered, "total_cycles", None)
    worst = compared.report.worst
    row = BackendRow(
        name,
        scheme,
        quantized=annotated.quantized_count,
        compute_nodes=len(annotated.decisions),
        delegates=lowered.delegates,
        delegated=len(lowered.delegated),
        undelegated=len(lowered.undelegated),
        converted_db=by_name["converted"].sqnr_db,
        program_bytes=len(program.buffer),
        cycles=cycles,
        sram_bytes=getattr(lowered, "sram_bytes", None),
        loss=f"{worst.module}: {worst.made_here_db:.1f} dB" if worst else "",
        cause=cause_of(compared, evaluation),
    )
    if compared.outputs is None:
        return row
    benchmark = partial(program.benchmark, runs=5)
    timed = None if program.emulation else called(benchmark, evaluation[0])
    return attrs.evolve(
        row,
        executed_db=by_name["executed"].sqnr_db,
        metric=metric and _asked(metric, compared.outputs),
        latency_ms=None if timed is None else timed.median_ms,
        executed_by=program.emulation or "its runtime, on this machine",
    )


def _asked(metric: Metric, outputs: list[Any]) -> float:
    try:
        return float(metric(outputs))
    except Exception as error:
        raise QcoreError(
            f"the metric failed: {type(error).__name__}: {error}. It gets a list of what the "
            "program returns for each sample, and returns a number."
        ) from error


@as_text.register
def _(report: BackendReport) -> str:
    heads = ("backend", "scheme", "quantized", "delegates", "converted", "executed", "size")
    table: list[tuple[str, ...]] = [(*heads, "latency", "metric", "seconds")]
    notes = []
    for row in report.rows:
        table.append(_cells(row))
        if row.failure:
            notes.append(f"{row.backend}: {row.failure}")
        else:
            notes.append(
                f"{row.backend}: executed by {row.executed_by}; largest loss in {row.loss}"
                + f", by {row.cause}" * bool(row.cause)
                + f"; {row.undelegated} compute nodes outside the delegates" * bool(row.undelegated)
            )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([*lines, "", *notes])


def _cells(row: BackendRow) -> tuple[str, ...]:
    if row.failure:
        return (row.backend, row.scheme, "failed", *[""] * 6, f"{row.seconds:.1f}")
    latency = "" if row.latency_ms is None else f"{row.latency_ms:.3g} ms"
    if row.cycles is not None:
        latency = f"{row.cycles} cycles, {row.sram_bytes} B SRAM"
    return (
        row.backend,
        row.scheme,
        f"{row.quantized}/{row.compute_nodes}",
        f"{row.delegates} ({row.delegated} nodes)",
        "" if row.converted_db is None else f"{row.converted_db:.1f} dB",
        "" if row.executed_db is None else f"{row.executed_db:.1f} dB",
        f"{row.program_bytes / 1e3:.1f} kB",
        latency,
        "" if row.metric is None else f"{row.metric:.4g}",
        f"{row.seconds:.1f}",
    )
