"""Quantization-aware training: fake quantization while a model trains, statistics frozen after."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.compat.torchao import (
    AVERAGES,
    HISTOGRAM,
    FakeQuantize,
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationConfig,
    QuantizationSpec,
    check_observers,
    disable_fake_quant,
    enable_fake_quant,
    made_by,
)
from qcore.formats import FormatObserver
from qcore.graph import arguments, module_path

__all__ = [
    "TRAINING",
    "freeze",
    "observe_alone",
    "training_layers",
    "with_fake_quantization",
]

#: Key in ``GraphModule.meta``: how the model is prepared, a :class:`bool`: true where somebody
#: trains it, false where its fake quantization only measures; absent where it has observers.
TRAINING: Final = "qcore_training"

# Observer -> what follows its range while the values change.
_RUNNING: Final[tuple[tuple[type, type], ...]] = (
    (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver),
    (MinMaxObserver, MovingAverageMinMaxObserver),
    (HISTOGRAM.target(), MovingAverageMinMaxObserver),
)

#: What this module made with running ranges -> what it was made of.
_BEFORE: Final[dict[QuantizationConfig, QuantizationConfig]] = {}


@functools.lru_cache
def with_fake_quantization(config: QuantizationConfig, running: bool) -> QuantizationConfig:
    """Return a configuration whose observers are fake quantization; one that has it stays as it is.

    ``running`` ones follow values that change in training by moving averages; otherwise the
    observers that the configuration has choose the ranges, and those it had before this function
    replaced them. The same arguments give the same (cached) object, since patterns compare
    configurations.
    """
    if config.is_qat:
        before = _BEFORE.get(config)
        return config if running or before is None else with_fake_quantization(before, False)
    one = functools.cache(lambda spec: spec and _fake(spec, running))
    parts = (config.input_activation, config.output_activation, config.weight, config.bias)
    made = QuantizationConfig(*map(one, parts), True)
    if running:
        _BEFORE[made] = config
    return made


def _fake(spec: QuantizationSpec, running: bool) -> QuantizationSpec:
    made = spec.observer_or_fake_quant_ctr
    cls, options = made_by(made)
    if not inspect.isclass(cls):
        cls = object  # A function of the user's own makes the observer.
    if issubclass(cls, FakeQuantizeBase):
        return spec
    average = next((average for known, average in _RUNNING if issubclass(cls, known)), None)
    if issubclass(cls, PlaceholderObserver):
        observer: Any = MovingAverageMinMaxObserver.with_args(averaging_constant=1)
        fake: Any = FakeQuantize.with_args(observer=observer, **options)
    elif running and average is not None:
        # The fused kernel computes scales of its own.
        ruled = isinstance(made, FormatObserver) and made.format.scales is not None
        fused = FakeQuantize if ruled else FusedMovingAvgObsFakeQuantize
        fake = fused.with_args(observer=average, **options)
    else:
        fake = FakeQuantize.with_args(observer=made)
    if isinstance(made, FormatObserver):
        fake = FormatObserver(fake, made.format, is_per_operator=made.is_per_operator)
    return dataclasses.replace(spec, observer_or_fake_quant_ctr=fake)


def _training_arguments(node: Node) -> Iterator[int]:
    """Yield the positions of the arguments that say that a node trains."""
    for position, argument in enumerate(arguments(node)):
        is_mode = argument.name in ("train", "training")
        if is_mode and len(node.args) > position and node.args[position]:
            yield position


def freeze(model: GraphModule) -> None:
    """Let batch norms use the statistics that they have, and dropouts keep everything."""
    for node in model.graph.nodes:
        for position in _training_arguments(node):
            node.update_arg(position, False)
    model.recompile()


def training_layers(model: GraphModule) -> list[str]:
    """Name the batch norms that use the statistics of each batch, and the dropouts that drop."""
    return [
        f"{node.name} in {module_path(node)!r}" if module_path(node) else node.name
        for node in model.graph.nodes
        if list(_training_arguments(node))
    ]


def observe_alone(model: GraphModule) -> Callable[[], None]:
    """Let fake quantization measure, and change no value: nobody trains with what it rounds.

    Moving averages, which are mostly of the first sample where values do not change, become the
    extremes of all samples. What is returned ends it, after the samples.
    """
    check_observers(*AVERAGES)
    model.apply(disable_fake_quant)
    running = []
    for module in model.modules():
        observer: Any = getattr(module, "activation_post_process", None)
        if hasattr(observer, "averaging_constant") and not observer.is_dynamic:
            running.append(_Extremes(module, observer))

    def end() -> None:
        for one in running:
            one.end()
        model.apply(enable_fake_quant)

    return end


class _Extremes:
    """Keeps the extremes of what an observer of moving averages sees."""

    def __init__(self, module: torch.nn.Module, observer: Any) -> None:
        self._observer, self._constant = observer, observer.averaging_constant
        self._low, self._high = observer.min_val.clone(), observer.max_val.clone()
        observer.averaging_constant = 1
        self._hook = module.register_forward_hook(self._widen)

    def _widen(self, *_: Any) -> None:
        observer = self._observer
        if self._low.shape != observer.min_val.shape:  # Known from the first sample on.
            self._low, self._high = observer.min_val.clone(), observer.max_val.clone()
        self._low = torch.minimum(self._low, observer.min_val)
        self._high = torch.maximum(self._high, observer.max_val)
        observer.min_val.copy_(self._low)
        observer.max_val.copy_(self._high)

    def end(self) -> None:
        self._hook.remove()
        self._observer.averaging_constant = self._constant
