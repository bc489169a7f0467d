"""What loses the accuracy that a module loses, in a few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from qcore_analysis.histograms import histograms_of
from qcore_analysis.measures import NO_NOISE_DB, Distance
from qcore_analysis.stage_report import EXECUTED
from qcore_analysis.tracing import Trace, flat_inputs

if TYPE_CHECKING:
    from qcore_analysis.histograms import Histogram
    from qcore_analysis.stages import Compared

__all__ = ["cause_of"]

#: Samples that are looked at once more.
_FEW: Final = 4
#: Twice the noise.
_TWICE_DB: Final = 10 * math.log10(2)


def cause_of(compared: Compared, samples: Sequence[Any]) -> str:
    """Say what makes the error of the module that loses most.

    Args:
        compared: A comparison.
        samples: What was compared on.

    Returns:
        What makes at least half of the noise; empty where there is none.
    """
    report, worst = compared.report, compared.report.worst
    if worst is None or worst.made_here_db >= NO_NOISE_DB:
        return ""
    if report.first_stage == EXECUTED:
        return "the execution, which differs from the converted model"
    few, model = samples[:_FEW], compared.result.model
    grids = histograms_of(model, few)
    own = [grid for grid in grids if grid.module == worst.module]
    if worst.computed_db - worst.made_here_db > _TWICE_DB:
        return "rounding its value" + _of_values([g for g in own if g.kind == "activation"])
    inputs = [node.name for node in model.graph.nodes if node.op == "placeholder"]
    if _with_right_inputs(compared, worst.node, inputs, few) - worst.computed_db > _TWICE_DB:
        return "rounding the model's input" + _of_values([g for g in grids if g.module in inputs])
    return "rounding " + _of_weights([grid for grid in own if grid.kind == "weight"])


def _with_right_inputs(
    compared: Compared, node: str, inputs: list[str], samples: Sequence[Any]
) -> float:
    """Return the SQNR of what a node computes where the model's inputs are not rounded, either."""
    found, model = Distance(), compared.result.model
    for sample in samples:
        flat, floats = flat_inputs(model, sample), compared.float_values(sample)
        right = {**floats, **dict(zip(inputs, flat, strict=True))}
        trace = Trace(model, frozenset(right), references=right)
        trace.of(flat)
        found.add(floats[node], trace.computed[node])
    return found.sqnr_db


def _of_values(grids: list[Histogram]) -> str:
    if not grids:
        return ""
    value = max(grids, key=lambda one: one.clipped)
    clipped = f", {_percent(value.clipped)} % of it clipped" if value.clipped > 0.0005 else ""
    return f" to {value.levels} levels{clipped}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def _of_weights(grids: list[Histogram]) -> str:
    if not grids:
        return "inside of it"
    # A bias may be quantized, too, to many more levels.
    weight = min(grids, key=lambda one: one.levels)
    said = f"its weights to {weight.levels} levels, "
    said += "a scale for each channel" if weight.scales > 1 else "one scale for all"
    if weight.spread > 2:
        said += f", the widest channel {weight.spread:.0f} times the narrowest"
    return said + f", {_percent(weight.zeros)} % of them to zero" * (weight.zeros > 0.1)
