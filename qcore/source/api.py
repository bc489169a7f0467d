"""``qcore.quantize_``, and what has the parameters of torchao's function, for the plugins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import evolve
from torch import nn
from torch.fx import GraphModule

from qcore import registry
from qcore.algorithms import Gptq, SquaredError, WeightAlgorithm
from qcore.backend import BackendHooks
from qcore.calibration import CalibrationData, check_device
from qcore.capture import Sample, in_mode
from qcore.errors import CalibrationError, SelectionError, UnsupportedSchemeError
from qcore.names import look_up
from qcore.report import LayerRecord, SourceReport
from qcore.schemes import LayerScheme
from qcore.source.equalizing import equalize
from qcore.source.modules import is_quantized, model_bytes, stored_bytes, stored_weight
from qcore.source.planning import LayerPlan, Planner
from qcore.source.resuming import Kept, Recalling
from qcore.source.rules import FilterFunction, Layers, Rules, RuleSet
from qcore.source.scheme import GroupSize, SourceSchemeLike, check_group_size, read_scheme
from qcore.source.stages import staged
from qcore.source.weights import (
    WEIGHT_ALGORITHMS,
    TorchaoAlgorithm,
    quantize_layers,
    tied_layers,
)

__all__ = ["SourceTarget", "quantize_", "torchao_quantize_"]


@runtime_checkable
class SourceTarget(Protocol):
    """What ``quantize_`` takes for a backend beside its name: a quantizer."""

    @property
    def name(self) -> str:
        """The backend's name."""

    @property
    def source_schemes(self) -> tuple[LayerScheme, ...]:
        """The schemes of ``quantize_`` that it executes."""


def quantize_(
    model: nn.Module,
    backend: Any,
    scheme: SourceSchemeLike = None,
    *,
    group_size: GroupSize | None = None,
    rules: Rules | None = None,
    filter_fn: FilterFunction | None = None,
    fallback: GroupSize | Sequence[GroupSize | None] | None = None,
    algorithm: str | WeightAlgorithm = "round",
    calibration_data: Iterable[Any] | None = None,
    resume: str | os.PathLike[str] | None = None,
    round_scales: bool = False,
    progress: bool | None = None,
) -> SourceReport:
    """Quantize the weights of linear layers and embeddings in place, as a backend executes them.

    Nothing changes if anything asked for is impossible: all checks come first. The most specific
    rule wins: module name (the deepest match), module type (the innermost), ``scheme``. A linear
    layer with a number of outputs that the backend does not take gets outputs of zeros, which are
    cut off after it; the report names it. A linear layer whose weight is quantized already, with
    activations in float and without zero points, keeps its integers and scales.

    Args:
        model: The float model; changed in place. Weights are quantized one layer after the other,
            so that at no time both the float and the quantized model are in memory.
        backend: A backend's name, or a quantizer from ``qcore.get_quantizer``.
        scheme: For every linear layer that no rule selects: ``8da4w`` (activations int8 at run
            time, weights 4 bit), ``8da8w``, ``4w``, ``8w``, each also with ``per-axis`` or
            ``per-group 32`` after it; a :class:`qcore.SourceScheme`; or torchao's
            ``IntxWeightOnlyConfig`` or ``Int8DynamicActivationIntxWeightConfig``. ``None`` leaves
            them as they are.
        group_size: How many weights of a row share a scale in ``scheme``; ``"axis"`` for one scale
            a row. ``None`` takes what the scheme says, else what the backend prefers.
        rules: Scheme by module name (``*`` and ``?`` within a component, ``**`` across) or by
            module class, such as ``{nn.Embedding: "8w", "lm_head": "8da8w", "head.*": None}``.
            A name selects everything in the module. Weight-only schemes also fit embeddings.
        filter_fn: From a layer and its name to whether it may be quantized, as torchao has it.
        fallback: The group size, or several in the order to try, for layers whose rows the group
            size asked for does not divide; ``"axis"`` for one scale a row, and ``None`` last in it,
            as in ``(16, None)``, leaves them in float. Without a fallback they are an error.
        algorithm: How the weights are chosen: ``"round"``, to nearest; ``"mse"``, with scales by
            squared error; ``"gptq"``, from the layers' inputs on ``calibration_data``, block by
            block; ``"hqq"``, torchao's; or a :class:`qcore.algorithms.WeightAlgorithm`. One that
            uses samples leaves layers whose inputs they do not show to ``"mse"``: embeddings, what
            shares their weight, and what no sample reaches.
        calibration_data: Samples of the model's inputs, for algorithms that use them.
        resume: A folder that keeps what such an algorithm chose. A run that was cut off goes on
            from there, if model, samples, schemes and algorithm are the same.
        round_scales: Whether the scales of layers that are quantized already may be rounded to the
            type that the backend keeps them in. The report says by how much.
        progress: Show how many blocks are done on stderr; ``None`` means: on a terminal.

    Returns:
        What became of every layer, and the sizes before and after.

    Raises:
        SelectionError: A rule matches nothing, or nothing would be quantized.
        AlreadyQuantizedError: A selected layer is quantized already, in another way.
        UnsupportedSchemeError: The backend does not execute the scheme for such a layer, or keeps
            the scales that one has with less precision.
        GroupSizeError: A group size does not fit a layer, and no fallback does.
        UnknownBackendError: No backend has that name.
        CalibrationError: The algorithm uses samples and there are none, or the other way round; a
            sample is on another device than the model; or ``resume`` cannot be written to.
    """
    _check_model(model)
    chosen, samples = _algorithm(algorithm, calibration_data)
    for index, sample in enumerate(samples):
        check_device(sample, model, f"Calibration sample {index}")
    if resume is not None and not chosen.uses_samples:
        raise CalibrationError(
            f"resume keeps what an algorithm learns from samples, and {chosen.name!r} uses none. "
            f"Leave it out, or pass algorithm='{Gptq.name}'."
        )
    name, supported = _backend(backend)
    default = read_scheme(scheme, supported, name)
    if default is not None and group_size is not None:
        check_group_size(group_size, "group_size")
        default = evolve(default, group_size=group_size)
    if default is None and not rules:
        raise SelectionError(
            "Nothing is quantized: neither scheme nor rules were given. Say what to quantize: "
            f"qcore.quantize_(model, {name!r}, '{supported[0].name if supported else '8da4w'}')."
        )
    planner = Planner(
        name,
        supported,
        RuleSet(default, rules or {}, supported, name),
        filter_fn,
        _fallback(fallback),
        round_scales,
    )
    plans = planner.plan(Layers(model))
    _check_symmetric(plans, chosen)
    return _apply(model, name, plans, chosen, samples, resume, progress)


def torchao_quantize_(
    model: nn.Module,
    config: Any,
    filter_fn: FilterFunction | None = None,
    *,
    backend: str,
) -> SourceReport:
    """Quantize in place what torchao's ``quantize_`` would, as far as a backend executes it.

    Args:
        model: The float model.
        config: ``IntxWeightOnlyConfig`` or ``Int8DynamicActivationIntxWeightConfig`` of torchao.
        filter_fn: From a module and its name to whether it is quantized: linear layers and
            embeddings. ``None`` selects every linear layer.
        backend: The backend's name.

    Returns:
        What became of every layer.

    Raises:
        QcoreError: As :func:`qcore.quantize_` raises it.
    """
    if filter_fn is None:
        return quantize_(model, backend, config)
    selected = [m for name, m in model.named_modules() if filter_fn(m, name)]
    rules: dict[Any, Any] = {
        kind: config
        for kind in (nn.Linear, nn.Embedding)
        if any(isinstance(module, kind) for module in selected)
    }
    return quantize_(model, backend, None if rules else config, rules=rules, filter_fn=filter_fn)


def _check_model(model: object) -> None:
    if isinstance(model, nn.Module) and not isinstance(model, GraphModule):
        return
    raise SelectionError(
        f"quantize_ takes a torch.nn.Module before capture, got {type(model).__name__}. "
        "Call it on the model itself, and export or lower the model afterwards."
    )


def _backend(backend: Any) -> tuple[str, tuple[LayerScheme, ...]]:
    if isinstance(backend, str):
        hooks = BackendHooks(registry.load_backend(backend, {}), backend)
        return backend, tuple(s for s in hooks.supported_schemes() if isinstance(s, LayerScheme))
    if isinstance(backend, SourceTarget):
        return backend.name, backend.source_schemes
    raise SelectionError(
        f"quantize_ takes a backend's name or a quantizer, got {backend!r}. "
        f"Installed: {', '.join(registry.backends()) or 'none'}."
    )


def _fallback(
    given: GroupSize | Sequence[GroupSize | None] | None,
) -> tuple[GroupSize | None, ...]:
    sizes = () if given is None else (given,) if isinstance(given, (int, str)) else tuple(given)
    for index, size in enumerate(sizes):
        if size is not None or index < len(sizes) - 1:
            check_group_size(size, "fallback")
    return sizes


def _algorithm(
    wanted: str | WeightAlgorithm, samples: Iterable[Any] | None
) -> tuple[WeightAlgorithm, list[Sample]]:
    own = "One of your own is an object of a subclass of qcore.algorithms.WeightAlgorithm."
    chosen = look_up(wanted, WEIGHT_ALGORITHMS, WeightAlgorithm, "algorithm of quantize_", own)
    if samples is not None and not chosen.uses_samples:
        raise CalibrationError(
            f"{chosen.name!r} uses no samples. Leave calibration_data out, or pass one that does: "
            f"algorithm='{Gptq.name}'."
        )
    if samples is None and chosen.uses_samples:
        raise CalibrationError(
            f"{chosen.name!r} measures the inputs of the layers, and there are no samples. Pass "
            "calibration_data=[...], typical inputs of the model; without any, "
            f"algorithm='{SquaredError.name}' is the best there is."
        )
    return chosen, [] if samples is None else list(CalibrationData.of(samples))


def _check_symmetric(plans: Sequence[LayerPlan], algorithm: WeightAlgorithm) -> None:
    if isinstance(algorithm, TorchaoAlgorithm) and algorithm.choice is None:
        return
    for plan in plans:
        if plan.scheme is not None and not plan.scheme.is_symmetric:
            raise UnsupportedSchemeError(
                f"{algorithm.name!r} chooses weights without zero points, and {plan.rule} asks "
                f"for some in {plan.layer.name}. Leave weight_mapping_type at its default, or "
                "pass algorithm='round'."
            )


def _apply(
    model: nn.Module,
    backend: str,
    plans: Sequence[LayerPlan],
    algorithm: WeightAlgorithm,
    samples: Sequence[Sample],
    resume: str | os.PathLike[str] | None,
    progress: bool | None,
) -> SourceReport:
    before = model_bytes(model)
    sizes = {plan.layer.name: _weight_bytes(plan) for plan in plans}
    untied: list[str] = []
    shared: dict[str, str] = {}
    used: dict[str, str] = {}
    groups = [group for group in tied_layers(plans) if any(plan.scheme for plan in group)]
    kept = None if resume is None else Kept(resume, model, groups, algorithm, samples)
    with in_mode(model, training=False):
        if samples and algorithm.equalizes:
            equalize(model, plans, samples[0])
        is_known = kept.has if kept else lambda _: False
        for group, moment in staged(model, groups, samples, is_known, progress):
            owners = _other_owners(model, group)
            is_kept = is_quantized(group[0].layer.module)
            choices = kept.read(group) if kept else {}
            is_fit = bool(not samples or choices) or moment is not None
            fitting = algorithm if is_fit else SquaredError()
            chooser = Recalling(fitting, choices) if kept else fitting
            shared.update(quantize_layers(group, chooser, moment))
            if kept and moment is not None:
                kept.write(group, choices)
            if not is_kept:
                used.update({plan.layer.name: fitting.name for plan in group if plan.scheme})
            untied.extend(_untied(group, shared, owners))
    records = [
        LayerRecord(
            name=plan.layer.name,
            kind=type(plan.layer.module).__name__,
            weights=sizes[plan.layer.name][0],
            bytes_before=sizes[plan.layer.name][1],
            bytes_after=0 if plan.layer.name in shared else _weight_bytes(plan)[1],
            scheme=None if plan.scheme is None else str(plan.scheme),
            rule="" if plan.rule is None else str(plan.rule),
            reason=plan.reason or _unmeasured(used.get(plan.layer.name), algorithm),
            tied_with=shared.get(plan.layer.name, ""),
            algorithm=used.get(plan.layer.name, ""),
        )
        for plan in plans
    ]
    return SourceReport(backend, tuple(records), before, model_bytes(model), tuple(untied))


def _unmeasured(used: str | None, algorithm: WeightAlgorithm) -> str:
    if used in (None, algorithm.name):
        return ""
    return f"{used!r} chose its weights: no sample reaches it, or an embedding has the same weight"


def _weight_bytes(plan: LayerPlan) -> tuple[int, int]:
    weight = stored_weight(plan.layer.module)
    return (0, 0) if weight is None else (weight.numel(), stored_bytes(weight))


def _other_owners(model: nn.Module, group: Sequence[LayerPlan]) -> list[str]:
    """Name the parameters that are the weight of these layers and no layer's own."""
    weight: torch.Tensor | None = stored_weight(group[0].layer.module)
    own = {f"{name}.weight".lstrip(".") for plan in group for name in plan.layer.names}
    return [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is weight and name not in own
    ]


def _untied(group: Sequence[LayerPlan], shared: dict[str, str], owners: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for plan in group:
        if plan.layer.name not in shared:
            parts.append(f"{plan.layer.name} ({plan.scheme or 'float'})")
    parts += [f"{name} (float)" for name in owners]
    if len(parts) < 2:
        return []
    return [
        f"{' and '.join(parts)} shared one weight and no longer do: their schemes differ. "
        "Give them the same bits and group size to keep one copy."
    ]
