"""One model all the way: quantized, lowered, run, compared, and what became of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

import qcore
from qcore.errors import QcoreError, RuntimeUnavailableError
from qcore.lowering.rounding import run_disturbed
from qcore.source.export import export_quantized
from qcore.testing.comparison import sqnr_db
from qcore.testing.fuzz.builder import linear_recipe, random_recipe
from qcore.testing.fuzz.recipe import Recipe
from qcore.testing.requirements import Requirements

__all__ = ["FLOWS", "Kind", "Outcome", "difference", "recipe_of", "shrunk", "try_recipe"]

#: The least agreement of a program with its quantized model, where rounding decides no more.
_RIGHT_DB = 20.0
#: What values are multiplied by, one after the other, to see how far rounding moves a result.
_MOVES = (1.002, 0.998)
#: Runs with other roundings, at most. Of CLIP's one number each fourth is as far as its program.
_DISTURBED = 32
#: What float arithmetic leaves of a difference of values around 1, such as the mean of a norm.
_NOISE = 1e-5


class Kind(StrEnum):
    """What became of a model."""

    RIGHT = "right"
    REFUSED = "refused with reasons"
    STOPPED = "stop in lowering"
    LATE = "lower, then do not load or run"
    CRASH = "kill a process"
    SLOW = "take longer than the time limit"
    WRONG = "wrong when executed"
    BARE = "exception that is no QcoreError"
    INVALID = "the float model does not run"


@frozen
class Outcome:
    """What became of one model.

    Attributes:
        seed: The model's seed.
        kind: What became of it.
        detail: What was said.
        undecided: Nodes of the captured model without a decision.
        mended: What the backend left out of its delegates since it is wrong there.
        delegates: How many delegates the program has; None where none was made.
        outside: How many operators run outside of them.
    """

    seed: int
    kind: Kind
    detail: str = ""
    undecided: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    delegates: int | None = None
    outside: int | None = None


def recipe_of(flow: str, seed: int) -> Recipe:
    """Draw the model of a seed for a flow."""
    return (linear_recipe if flow == "quantize_" else random_recipe)(seed)


def try_recipe(recipe: Recipe, backend: str, flow: str) -> Outcome:
    """Take a model all the way.

    Args:
        recipe: The model.
        backend: Name of the backend.
        flow: ``"pt2e"`` or ``"quantize_"``.

    Returns:
        What became of it.
    """
    try:
        scope = recipe.build()
        _called(scope["model"], scope["samples"][0])
    except Exception as error:
        return Outcome(recipe.seed, Kind.INVALID, _text(error))
    if not Requirements.declared_by(backend).dynamic_shapes:
        scope["dynamic_shapes"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FLOWS[flow](recipe.seed, backend, **{k: scope[k] for k in _SCOPE})


_SCOPE = ("model", "samples", "dynamic_shapes")


def _pt2e(seed: int, backend: str, model: Any, samples: Any, dynamic_shapes: Any) -> Outcome:
    quantizer = _quantizer(backend)
    quantizer.set_global(_schemes(quantizer, None)[0].name)
    undecided: tuple[str, ...] = ()
    try:
        result = qcore.quantize(model, quantizer, samples, dynamic_shapes=dynamic_shapes)
        undecided = _undecided(model, samples[0], result.report, dynamic_shapes)
    except QcoreError as error:
        return Outcome(seed, Kind.REFUSED, _text(error))
    except Exception as error:
        return Outcome(seed, Kind.BARE, f"quantize: {_text(error)}")
    outcome = _lowered(seed, quantizer, result.model, samples, None)
    return evolve(outcome, undecided=undecided)


def _quantizer(backend: str) -> qcore.Quantizer:
    return qcore.get_quantizer(backend, **Requirements.declared_by(backend).options)


def _schemes(quantizer: Any, layer: str | None) -> list[Any]:
    """Return the schemes that the backend executes for a kind of layer; None: in PT2E."""
    schemes = quantizer.backend.supported_schemes()
    return [scheme for scheme in schemes if getattr(scheme, "layer", None) == layer]


def _source(seed: int, backend: str, model: Any, samples: Any, dynamic_shapes: Any) -> Outcome:
    quantizer = _quantizer(backend)
    linear, *others = _schemes(quantizer, "linear")
    per_axis = [s for s in others if s.name == linear.name and s.granularity == "per_channel"]
    layers = dict(model.named_modules())
    undecided = {name for name, layer in layers.items() if type(layer) in _LAYERS}
    tables = _schemes(quantizer, "embedding")
    has_table = any(type(layer) is nn.Embedding for layer in layers.values())
    try:
        report = qcore.quantize_(
            model,
            backend,
            linear.name,
            group_size=_GROUP,
            rules={nn.Embedding: tables[0].name} if tables and has_table else None,
            fallback=(8, "axis", None) if per_axis else (8, None),
        )
    except QcoreError as error:
        return Outcome(seed, Kind.REFUSED, _text(error))
    except Exception as error:
        return Outcome(seed, Kind.BARE, f"quantize_: {_text(error)}")
    undecided -= {layer.name for layer in report.layers}
    outcome = _lowered(seed, quantizer, model, samples, dynamic_shapes)
    return evolve(outcome, undecided=tuple(sorted(undecided)))


#: What ``quantize_`` decides about, and the size of the groups that it is asked for.
_LAYERS = (nn.Linear, nn.Embedding)
_GROUP = 32


FLOWS: dict[str, Callable[..., Outcome]] = {"pt2e": _pt2e, "quantize_": _source}


def _lowered(seed: int, quantizer: Any, model: Any, samples: Any, dynamic_shapes: Any) -> Outcome:
    try:
        program = quantizer.lower(model, samples[0], dynamic_shapes=dynamic_shapes)
    except QcoreError as error:
        return Outcome(seed, Kind.STOPPED, _text(error))
    except Exception as error:
        return Outcome(seed, Kind.BARE, f"lower: {_text(error)}")
    report = program.report
    mended = tuple(map(str, getattr(report, "mended", ())))
    made = Outcome(seed, Kind.RIGHT, "", (), mended, report.delegates, len(report.undelegated))
    sample = samples[1]
    try:
        arguments = tuple(sample.values()) if isinstance(sample, dict) else sample
        output = program.run(*arguments, **Requirements.declared_by(quantizer.name).run_options)
    except RuntimeUnavailableError:
        return _verified(made, program, arguments)
    except QcoreError as error:
        return evolve(made, kind=Kind.LATE, detail=_text(error))
    except Exception as error:
        return evolve(made, kind=Kind.BARE, detail=f"run: {_text(error)}")
    far = difference(_callable(model, sample, dynamic_shapes), sample, output)
    return evolve(made, kind=Kind.WRONG if far else Kind.RIGHT, detail=far)


def _callable(model: Any, sample: Any, dynamic_shapes: Any) -> Any:
    """Return a model, or what it exports to where only its layers may read quantized weights."""
    try:
        _called(model, sample)
    except NotImplementedError:  # Of torchao's tensors.
        return export_quantized(model, sample, dynamic_shapes).module(check_guards=False)
    return model


def _verified(made: Outcome, program: Any, arguments: Sequence[Any]) -> Outcome:
    """Judge a program that nothing here executes by what its backend computes of it."""
    if not hasattr(program, "verify"):
        return evolve(made, detail="not executed here")
    try:
        found = program.verify(*arguments)
    except QcoreError as error:
        return evolve(made, kind=Kind.LATE, detail=f"verify: {_text(error)}")
    except Exception as error:
        return evolve(made, kind=Kind.BARE, detail=f"verify: {_text(error)}")
    if found.ok:
        return evolve(made, detail=f"verified, not executed: {found.sqnr_db:.0f} dB")
    return evolve(made, kind=Kind.WRONG, detail=" ".join(str(found).split()))


def difference(model: Any, sample: Any, output: Any) -> str:
    """Say how far an output is from the model's, beyond what another rounding does to it."""
    expected = torch.utils._pytree.tree_leaves(_called(model, sample))
    runs = [_called(*_moved(model, sample, factor)) for factor in _MOVES]
    found = _difference(expected, runs, output)
    if not found or not isinstance(model, torch.fx.GraphModule):
        return found
    names = [node.name for node in model.graph.find_nodes(op="placeholder")]
    given = [sample[name] for name in names] if isinstance(sample, dict) else sample
    for seed in range(_DISTURBED):
        runs.append(run_disturbed(model, seed, *copy.deepcopy(given)))
        found = _difference(expected, runs, output)
        if not found:
            break
    return found


def _difference(expected: Sequence[Any], runs: Sequence[Any], output: Any) -> str:
    moved = [torch.utils._pytree.tree_leaves(run) for run in runs]
    actual = torch.utils._pytree.tree_leaves(output)
    if len(expected) != len(actual):
        return f"{len(actual)} outputs for {len(expected)}"
    for index, (a, b, *others) in enumerate(zip(expected, actual, *moved, strict=True)):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index}: {b.dtype}{list(b.shape)} for {a.dtype}{list(a.shape)}"
        rounding = min(sqnr_db(a, other) for other in others)
        if torch.allclose(a, b, rtol=0, atol=_NOISE):
            continue
        if not sqnr_db(a, b) >= min(_RIGHT_DB, rounding - 6):
            return f"output {index}: {sqnr_db(a, b):.0f} dB, {rounding:.0f} dB by rounding"
    return ""


def _moved(model: Any, sample: Any, factor: float) -> tuple[Any, Any]:
    """Return the model and a sample after a small change: to the weights if not to the sample."""

    def move(value: Any) -> Any:
        return value * factor if value.is_floating_point() else value

    leaves = torch.utils._pytree.tree_leaves(sample)
    if not any(leaf.is_floating_point() for leaf in leaves):
        model = copy.deepcopy(model)
        with torch.no_grad():
            for value in model.state_dict().values():
                if type(value) is torch.Tensor and value.is_floating_point():
                    value.mul_(factor)  # Quantized ones have levels and scales instead.
    return model, torch.utils._pytree.tree_map(move, sample)


def _called(model: Any, sample: Any) -> Any:
    with torch.no_grad():
        sample = torch.utils._pytree.tree_map(lambda value: value.clone(), sample)
        return model(**sample) if isinstance(sample, dict) else model(*sample)


def _undecided(model: Any, sample: Any, report: Any, dynamic_shapes: Any) -> tuple[str, ...]:
    from qcore.capture import Sample, capture
    from qcore.graph import is_compute_node

    graph = capture(model, Sample.of(sample), dynamic_shapes=dynamic_shapes, is_qat=False)
    decided = {decision.node for decision in report.decisions}
    return tuple(n.name for n in graph.graph.nodes if is_compute_node(n) and n.name not in decided)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def shrunk(recipe: Recipe, fails: Callable[[Recipe], bool]) -> Recipe:
    """Return the smallest model that still fails.

    Args:
        recipe: A model that fails.
        fails: Says whether a smaller one fails in the same way.

    Returns:
        A model of which no part can be left out.
    """
    tried = {recipe.code}
    while True:
        for smaller in recipe.smaller():
            if smaller.code in tried or len(smaller.code) > len(recipe.code):
                continue
            tried.add(smaller.code)
            if fails(smaller):
                recipe = smaller
                break
        else:
            return recipe
