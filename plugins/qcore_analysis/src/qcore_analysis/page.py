"""A quantized model as one HTML file that needs no network: what, where, how accurate, how fast."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from qcore.files import write_whole
from qcore.report import LoweringReport
from qcore_analysis.errors import InputError
from qcore_analysis.histograms import histograms_of
from qcore_analysis.measures import NO_NOISE_DB
from qcore_analysis.stage_report import EXECUTED

if TYPE_CHECKING:
    from qcore_analysis.histograms import Histogram
    from qcore_analysis.making import Made
    from qcore_analysis.recipe import Recipe
    from qcore_analysis.stage_report import ModuleRecord, StageReport

__all__ = ["write_html", "write_node_data"]

#: Errors above this are not seen by anybody: the end of the scale of the chart.
_MOST_DB: Final = 60.0
#: What Model Explorer calls the graph of a ``.pt2``; data under another name are ignored.
_GRAPH: Final = "graph"


def write_html(
    path: str | os.PathLike[str],
    title: str,
    made: Made,
    recipe: Recipe,
    samples: Iterable[Any],
    *,
    unseen: bool,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: The file.
        title: What the model is called.
        made: The quantized model and the program, with the comparison of the stages.
        recipe: What it was made by.
        samples: What was compared on.
        unseen: Whether these are others than those of calibration.

    Returns:
        The path.

    Raises:
        InputError: The file cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(bars=_bars, db=_decibels)
    template = files("qcore_analysis") / "report.html.j2"
    rows, stages = _rows(made.report), made.stages.stages if made.stages else ()
    by_module: dict[str, list[Histogram]] = {}
    for histogram in histograms_of(made.result.model, samples) if made.result else ():
        by_module.setdefault(histogram.module, []).append(histogram)
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        title=title,
        rows=rows,
        quantized=sum(row["scheme"] != "" for row in rows),
        warnings=getattr(made.report, "warnings", ()),
        lowering=made.program.report,
        figures=_figures(made.program.report.to_dict()),
        recipe=recipe.to_toml(),
        stages=made.stages,
        layers=_layers(made.stages),
        executed=[m for s in stages if s.name == EXECUTED for m in s.modules],
        unseen=unseen,
        histograms=by_module,
    )
    return write_whole(path, text.encode(), "the report", "report.html", InputError)


def write_node_data(path: str | os.PathLike[str], made: Made) -> Path:
    """Write the error made in each node as Google's Model Explorer overlays it on a ``.pt2``.

    Args:
        path: The file.
        made: The program, with the comparison of the stages.

    Returns:
        The path.

    Raises:
        InputError: The file cannot be written.
    """
    results = {m.node: {"value": round(m.made_here_db, 2)} for m in _measured(made.stages)}
    graph = {
        "results": results,
        "gradient": [{"stop": 0, "bgColor": "#b3261e"}, {"stop": 1, "bgColor": "#e8f0fe"}],
    }
    data = json.dumps({_GRAPH: graph}, indent=1).encode()
    return write_whole(path, data, "the node data", "nodes.json", InputError)


def _rows(report: Any) -> list[dict[str, str]]:
    """Return what became of each node, or of each layer."""
    if hasattr(report, "decisions"):
        return [
            {
                "name": d.node,
                "module": d.module,
                "operator": d.operator,
                "scheme": d.scheme or "",
                "why": " ".join(filter(None, (d.reason, d.advice))) or d.pattern,
            }
            for d in report.decisions
        ]
    return [
        {
            "name": layer.name.rpartition(".")[2],
            "module": layer.name,
            "operator": layer.kind,
            "scheme": layer.scheme or "",
            "why": layer.reason,
        }
        for layer in report.layers
    ]


def _figures(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of a report in words, and those of a backend's own records one by one.

    Lists that reports of every backend have are told elsewhere.
    """
    known = {member.name for member in attrs.fields(LoweringReport)}
    found = {}
    for key, value in data.items():
        if isinstance(value, list) and key not in known:
            for number, record in enumerate(value, 1):
                figures = _figures(record) if isinstance(record, Mapping) else {"": record}
                words = ", ".join(f"{name} {figure}".strip() for name, figure in figures.items())
                found[f"{key.replace('_', ' ')} {number}"] = words
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{name} {number:.2f}" if isinstance(number, float) else f"{name} x{number}"
                for name, number in value.items()
            )
        if isinstance(value, float):
            value = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        if isinstance(value, (str, int)) and value != "" and key not in ("kind", "backend"):
            found[key.replace("_", " ")] = f"{value:,}" if type(value) is int else str(value)
    return found


def _measured(stages: StageReport | None) -> tuple[ModuleRecord, ...]:
    """Return the modules of the last stage before the program."""
    found = [s.modules for s in stages.stages if s.name != EXECUTED] if stages else []
    return found[-1] if found else ()


def _layers(stages: StageReport | None) -> list[tuple[ModuleRecord, float]]:
    """Return the modules and the lengths of their bars in percent: the longer, the worse."""
    return [
        (module, 100 - 100 * min(max(module.made_here_db, 0.0), _MOST_DB) / _MOST_DB)
        for module in _measured(stages)
    ]


def _decibels(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return "exact" if value >= NO_NOISE_DB else f"{value:.1f} dB"


def _bars(counts: Iterable[int]) -> str:
    """Return the path of a histogram in a box of 100 by 40, each bar 100 / n wide."""
    numbers = list(counts)
    most, width = max(numbers, default=0) or 1, 100 / max(len(numbers), 1)
    # A bar that is there is seen: heights are roots of the counts.
    heights = [round(40 * (number / most) ** 0.5, 1) for number in numbers]
    return "M0 40" + "".join(f"V{40 - height:g}h{width:g}" for height in heights) + "V40z"
