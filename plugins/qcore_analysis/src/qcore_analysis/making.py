"""Making a program, and what is told of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

import qcore
from qcore import LoweredProgram, QuantizedModel, Quantizer
from qcore.cli.progress import bars, step
from qcore_analysis.errors import RecipeError
from qcore_analysis.samples import as_example
from qcore_analysis.stage_report import StageReport
from qcore_analysis.stages import compare

__all__ = ["Made", "lowered", "make", "make_by_source", "quantized"]


@attrs.frozen
class Made:
    """What a recipe makes.

    Attributes:
        program: The program.
        report: What became of the model: an ``AnnotationReport``, or a ``SourceReport``.
        result: What ``qcore.quantize`` returned; None for a scheme of ``qcore.quantize_``.
        stages: The comparison of the stages, where one was asked for.
    """

    program: LoweredProgram
    report: Any
    result: QuantizedModel | None
    stages: StageReport | None = None


def make(
    model: Any,
    quantizer: Quantizer,
    samples: list[Any],
    *,
    algorithms: Sequence[str],
    lowering: Mapping[str, Any],
    compare_on: Sequence[Any],
    quiet: bool,
) -> Made:
    """Quantize a model and lower it; compare the stages where there is something to compare on."""
    if compare_on:
        found = compare(
            model,
            quantizer,
            samples,
            list(compare_on),
            algorithms=algorithms,
            execute=True,
            least_db=20.0,
            lowering=lowering,
            quiet=quiet,
        )
        assert found.program is not None
        return Made(found.program, found.result.report, found.result, found.report)
    result = quantized(model, quantizer, samples, algorithms, quiet)
    program = lowered(quantizer, result.model, samples[0], lowering, quiet)
    return Made(program, result.report, result)


def quantized(
    model: Any, quantizer: Quantizer, samples: list[Any], algorithms: Sequence[str], quiet: bool
) -> QuantizedModel:
    """Quantize a model, with its stages on a terminal."""
    with step(f"{quantizer.name}: quantizing", quiet):
        progress = bars(quiet)
        return qcore.quantize(model, quantizer, samples, algorithms=algorithms, progress=progress)


def make_by_source(
    model: Any,
    quantizer: Quantizer,
    scheme: str,
    rules: Mapping[Any, Any],
    samples: list[Any],
    lowering: Mapping[str, Any],
    quiet: bool,
) -> Made:
    """Treat the weights of a module before it is captured, and lower it."""
    if not isinstance(model, torch.nn.Module):
        raise RecipeError(
            f"{scheme} quantizes weights before the model is captured, and this model is exported "
            "already. Name a function that makes the module."
        )
    treated = copy.deepcopy(model)
    with step(f"{quantizer.name}: quantizing", quiet):
        progress = bars(quiet)
        report = qcore.quantize_(
            treated, quantizer, scheme, rules=dict(rules) or None, progress=progress
        )
    return Made(lowered(quantizer, treated, samples[0], lowering, quiet), report, None)


def lowered(
    quantizer: Quantizer, model: Any, sample: Any, lowering: Mapping[str, Any], quiet: bool
) -> LoweredProgram:
    """Make a program of a quantized model, with its stages on a terminal."""
    with step(f"{quantizer.name}: lowering", quiet):
        return quantizer.lower(model, as_example(sample), progress=bars(quiet), **lowering)
