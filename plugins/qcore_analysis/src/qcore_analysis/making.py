"""Making what a recipe describes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs
import torch

import qcore
from qcore import LoweredProgram, QuantizedModel, Quantizer
from qcore_analysis.errors import RecipeError
from qcore_analysis.progress import stage
from qcore_analysis.recipe import IN_FLOAT, Recipe
from qcore_analysis.samples import as_example
from qcore_analysis.stage_report import StageReport
from qcore_analysis.stages import compare

__all__ = ["Made", "make"]


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
    recipe: Recipe,
    model: Any,
    samples: list[Any],
    *,
    quiet: bool,
    compare_on: Sequence[Any],
) -> Made:
    """Quantize a model as a recipe says and lower it; as :meth:`Recipe.make`."""
    quantizer = recipe.quantizer()
    if recipe.is_source(quantizer):
        return _make_by_source(recipe, model, samples, quantizer, quiet)
    if compare_on:
        found = compare(
            model,
            quantizer,
            samples,
            list(compare_on),
            algorithms=recipe.algorithms,
            execute=True,
            least_db=20.0,
            lowering=recipe.lowering,
            quiet=quiet,
        )
        assert found.program is not None
        return Made(found.program, found.result.report, found.result, found.report)
    with stage(f"{recipe.backend}: quantizing", quiet):
        progress = False if quiet else None
        result = qcore.quantize(
            model, quantizer, samples, algorithms=recipe.algorithms, progress=progress
        )
    program = _lowered(recipe, quantizer, result.model, samples, quiet)
    return Made(program, result.report, result)


def _make_by_source(
    recipe: Recipe, model: Any, samples: list[Any], quantizer: Quantizer, quiet: bool
) -> Made:
    if not isinstance(model, torch.nn.Module):
        raise RecipeError(
            f"{recipe.scheme or recipe.backend} quantizes weights before the model is captured, "
            "and this model is exported already. Name a function that makes the module."
        )
    treated = copy.deepcopy(model)
    scheme = recipe.scheme or quantizer.source_schemes[0].name
    names: dict[Any, Any] = {
        r.name: None if r.scheme == IN_FLOAT else r.scheme for r in recipe.rules
    }
    with stage(f"{recipe.backend}: quantizing", quiet):
        report = qcore.quantize_(treated, quantizer, scheme, rules=names or None)
    return Made(_lowered(recipe, quantizer, treated, samples, quiet), report, None)


def _lowered(
    recipe: Recipe, quantizer: Quantizer, model: Any, samples: list[Any], quiet: bool
) -> LoweredProgram:
    with stage(f"{recipe.backend}: lowering", quiet):
        return quantizer.lower(model, as_example(samples[0]), **recipe.lowering)
