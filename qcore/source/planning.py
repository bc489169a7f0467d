"""Every check of source quantization, before a weight is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
from attrs import evolve, frozen

from qcore.errors import (
    AlreadyQuantizedError,
    GroupSizeError,
    SelectionError,
    UnsupportedSchemeError,
)
from qcore.schemes import LayerScheme, check_scheme
from qcore.source.modules import QuantizedLayer, held, is_quantized, stored_weight
from qcore.source.rules import Choice, FilterFunction, Layers, ModelLayer, RuleSet, SourceRule
from qcore.source.scheme import GroupSize, SourceScheme

__all__ = ["LayerPlan", "Planner"]

#: The group sizes that advice tries, the usual ones first.
_SIZES: Final[tuple[GroupSize, ...]] = (32, 64, 128, 16, 8, 4, 2, "axis")


@frozen(eq=False)
class LayerPlan:
    """What will become of one layer.

    Attributes:
        layer: The layer.
        scheme: Its scheme with its group size; ``None`` where it stays as it is.
        rule: The rule that selected it.
        reason: Why it stays as it is, or why it is not quantized quite as asked for.
        scale_dtype: The type that the backend keeps the scales in.
        padding: How many output channels of zeros the backend needs beside the layer's own.
    """

    layer: ModelLayer
    scheme: SourceScheme | None
    rule: SourceRule | None = None
    reason: str = ""
    scale_dtype: torch.dtype = torch.float32
    padding: int = 0


@frozen
class Planner:
    """Decides about every layer, and raises for what the backend cannot execute.

    Attributes:
        backend: The backend's name, for messages.
        supported: Its schemes of source quantization, the preferred ones first.
        rules: What the user asked for.
        filter_fn: Leaves a layer as it is where it returns false.
        fallback: Group sizes to try, in this order, where the one asked for does not fit; ``None``
            leaves the layer in float.
        rounds_scales: Whether scales that a layer has already may lose precision.
    """

    backend: str
    supported: Sequence[LayerScheme]
    rules: RuleSet
    filter_fn: FilterFunction | None = None
    fallback: Sequence[GroupSize | None] = ()
    rounds_scales: bool = False

    def plan(self, layers: Layers) -> list[LayerPlan]:
        """Decide about the layers of a model.

        Args:
            layers: The layers.

        Returns:
            A plan for each, in their order.

        Raises:
            SelectionError: A rule matches nothing, or nothing would be quantized.
            AlreadyQuantizedError: A selected layer is quantized already.
            UnsupportedSchemeError: The backend has no such scheme for a selected layer.
            GroupSizeError: A group size does not fit a layer, and no fallback does.
        """
        self.rules.check_matches(layers)
        chosen = [(layer, self._choice(layer)) for layer in layers.all]
        self._refuse_quantized(chosen)
        self._refuse_other_layers(chosen)
        plans: list[LayerPlan] = []
        unfit: list[tuple[LayerPlan, str]] = []
        for layer, choice in chosen:
            if not isinstance(choice, Choice):
                plans.append(LayerPlan(layer, None, reason=choice))
                continue
            plan, problem = self._sized(layer, choice.rule)
            plans.append(plan)
            if problem:
                unfit.append((plan, problem))
        if unfit:
            raise GroupSizeError(self._unfit(unfit))
        if not any(plan.scheme for plan in plans):
            raise SelectionError(self._nothing(plans))
        return plans

    def _choice(self, layer: ModelLayer) -> Choice | str:
        """Return the rule that quantizes a layer, or the reason why none does."""
        choice = self.rules.choose(layer)
        if choice is None:
            return "no rule selects it"
        if choice.rule.scheme is None:
            return f"{choice.rule} leaves it"
        if self.filter_fn is not None and not self.filter_fn(layer.module, layer.names[0]):
            return "the filter function leaves it out"
        if layer.kind == "embedding" and not choice.rule.key:
            return f"{choice.rule} is for linear layers; give embeddings a rule of their own"
        if layer.kind == "embedding" and choice.rule.scheme.is_dynamic and not choice.is_direct:
            return f"an embedding has no activation to quantize, as {choice.rule} would"
        if layer.kind is None and not choice.is_direct and not is_quantized(layer.module):
            return layer.reason
        return choice

    def _refuse_quantized(self, chosen: Sequence[tuple[ModelLayer, Choice | str]]) -> None:
        names = [
            layer.name
            for layer, choice in chosen
            if isinstance(choice, Choice)
            and is_quantized(layer.module)
            and held(layer.module) is None
        ]
        if names:
            raise AlreadyQuantizedError(
                f"{_names(names)} {'is' if len(names) == 1 else 'are'} quantized already; a weight "
                "cannot be quantized twice. Start from the float model and give every layer its "
                "scheme in one call (rules=...), or leave these out with rules={name: None}."
            )

    def _refuse_other_layers(self, chosen: Sequence[tuple[ModelLayer, Choice | str]]) -> None:
        good = {
            choice.rule for layer, choice in chosen if isinstance(choice, Choice) and layer.kind
        }
        lines = [
            f"{choice.rule} selects {layer.name}, which cannot be quantized: {layer.reason}."
            for layer, choice in chosen
            if isinstance(choice, Choice) and layer.kind is None and choice.rule not in good
            if not (
                None in self.fallback
                and isinstance(layer.module, (torch.nn.Linear, torch.nn.Embedding))
            )
        ]
        if lines:
            raise UnsupportedSchemeError(
                "\n".join(lines) + "\nqcore.quantize_ treats linear layers and embeddings; "
                "quantize other layers with qcore.quantize(model, quantizer, samples)."
            )

    def _sized(self, layer: ModelLayer, rule: SourceRule) -> tuple[LayerPlan, str]:
        asked = rule.scheme
        assert asked is not None
        if layer.kind is None:
            return LayerPlan(layer, None, rule, layer.reason), ""
        if (present := held(layer.module)) is not None:
            return self._kept(layer, present, rule), ""
        if layer.kind == "embedding" and asked.is_dynamic:
            raise UnsupportedSchemeError(
                f"{rule} asks for {asked} for {layer.name}, an embedding: it has no activation to "
                "quantize. Use a weight-only scheme: '8w', '4w' or '2w'."
            )
        asked = asked.preferred_on(layer.kind, self.supported)
        try:
            check_scheme(asked.for_layer(layer.kind), self.supported, self.backend)
        except UnsupportedSchemeError as error:
            error.add_note(f"asked for {layer.name} by {rule}")
            if layer.kind == "embedding" and all(s.layer != "embedding" for s in self.supported):
                raise UnsupportedSchemeError(
                    f"{self.backend} has no quantized embedding: {asked} for {layer.name} is not "
                    f"possible. Leave it in float: drop {rule}, or set it to None."
                ) from error
            raise
        tried: list[str] = []
        for size in (asked.group_size, *self.fallback):
            reason = f"fallback, because {tried[0]}" if tried else ""
            if size is None:
                return LayerPlan(layer, None, rule, reason), ""
            fitted = self._fitted(layer, evolve(asked, group_size=size), rule, reason)
            if isinstance(fitted, LayerPlan):
                return fitted, ""
            tried.append(fitted)
        return LayerPlan(layer, None, rule), f"  {layer.name}: {'; '.join(tried)}"

    def _kept(self, layer: ModelLayer, present: QuantizedLayer, rule: SourceRule) -> LayerPlan:
        """Return the plan for a layer that keeps the integers and scales that it has."""
        asked = rule.scheme
        assert asked is not None
        size, bits = present.group_size, present.scheme.weight_bits
        sizes: list[GroupSize] = [size, "axis"] if size == present.shape[1] else [size]
        has = f"{layer.name} is quantized already, {SourceScheme(f'{bits}w', sizes[-1])}"
        if asked.weight_bits != bits or asked.group_size not in (None, *sizes):
            raise AlreadyQuantizedError(
                f"{has}, and {rule} asks for something else; a weight cannot be quantized twice. "
                f"Ask for {bits} bits and leave the group size open, or start from the float model."
            )
        plans = [self._fitted(layer, evolve(asked, group_size=s), rule, "") for s in sizes]
        plan = next((plan for plan in plans if isinstance(plan, LayerPlan)), plans[0])
        problem = plan.reason if isinstance(plan, LayerPlan) else plan
        if not isinstance(plan, LayerPlan) or problem:
            raise UnsupportedSchemeError(
                f"{has}, and cannot become {asked}: {problem}. Start from the float model."
            )
        loss = _rounding_loss(layer, plan.scale_dtype)
        if loss and not self.rounds_scales:
            raise UnsupportedSchemeError(
                f"{has}. {self.backend} keeps scales in {_name(plan.scale_dtype)}, and rounding "
                f"these moves its weights by up to {loss:.2%}. Pass round_scales=True, in a "
                "command --round-scales, to take them so, or start from the float model."
            )
        rounded = f"; scales rounded to {_name(plan.scale_dtype)}, by up to {loss:.2%}"
        return evolve(plan, reason=f"quantized already, and kept{rounded if loss else ''}")

    def _fitted(
        self, layer: ModelLayer, scheme: SourceScheme, rule: SourceRule, reason: str
    ) -> LayerPlan | str:
        """Return the plan for a layer with a scheme, or why the scheme does not fit it."""
        weight = stored_weight(layer.module)
        assert weight is not None
        assert layer.kind is not None
        wanted = scheme.for_layer(layer.kind)
        declared = next((s for s in self.supported if s.covers(wanted)), None)
        if declared is None:
            return f"{self.backend} has no {scheme}"
        group = None if scheme.group_size == "axis" else scheme.group_size
        outputs, inputs = weight.shape
        padding = -outputs % declared.output_multiple if layer.kind == "linear" else 0
        misfit = declared.misfit(outputs + padding, inputs, group, self.backend)
        if misfit:
            return misfit
        if padding:
            note = f"padded, because {declared.misfit(outputs, inputs, group, self.backend)}"
            reason = f"{reason}; {note}" if reason else note
        return LayerPlan(layer, scheme, rule, reason, declared.scale_dtype, padding)

    def _unfit(self, unfit: Sequence[tuple[LayerPlan, str]]) -> str:
        """Say what fits none, and what the backend would take for these layers."""
        lines = [f"The group size does not fit {len(unfit)} layers:", *(line for _, line in unfit)]
        if self.fallback:
            lines.append(f"None of fallback=({', '.join(map(str, self.fallback))}) fits, either.")
        plans = [plan for plan, _ in unfit]
        for size in _SIZES:
            if all(self._takes(plan, evolve(_asked(plan), group_size=size)) for plan in plans):
                return "\n".join([*lines, f"Pass fallback={size!r}, which fits them all."])
        if plans[0].layer.names == ("",):  # The model is the layer.
            return "\n".join([*lines, f"Pass scheme={self._advised(plans[0])}."])
        rules = ", ".join(f"{plan.layer.name!r}: {self._advised(plan)}" for plan in plans)
        return "\n".join([*lines, f"Pass rules={{{rules}}}; None leaves a layer in float."])

    def _takes(self, plan: LayerPlan, scheme: SourceScheme) -> bool:
        assert plan.rule is not None
        return isinstance(self._fitted(plan.layer, scheme, plan.rule, ""), LayerPlan)

    def _advised(self, plan: LayerPlan) -> str:
        """Return the rule for a layer: its scheme in another size, another scheme, or None."""
        asked = _asked(plan)
        alike = (
            declared.name
            for declared in self.supported
            if declared.layer == plan.layer.kind and declared.is_dynamic == asked.is_dynamic
        )
        for name in dict.fromkeys((asked.name, *alike)):
            for size in _SIZES:
                scheme = SourceScheme(name, size)
                if self._takes(plan, scheme):
                    return repr(str(scheme))
        return "None"

    def _nothing(self, plans: Sequence[LayerPlan]) -> str:
        if not plans:
            return (
                "Nothing is quantized: the model has no layer with a weight. qcore.quantize_ "
                "treats torch.nn.Linear and torch.nn.Embedding."
            )
        counts = Counter((type(plan.layer.module).__name__, plan.reason) for plan in plans)
        lines = [f"  {count} x {kind}: {reason}" for (kind, reason), count in counts.items()]
        return (
            "Nothing is quantized.\n" + "\n".join(lines) + "\nqcore.quantize_ treats linear layers "
            "with scheme=..., and embeddings with rules={torch.nn.Embedding: '8w'}; other layers "
            "are quantized with qcore.quantize(model, quantizer, samples)."
        )


def _asked(plan: LayerPlan) -> SourceScheme:
    assert plan.rule is not None
    assert plan.rule.scheme is not None
    return plan.rule.scheme


def _rounding_loss(layer: ModelLayer, dtype: torch.dtype) -> float:
    """Return how far, relative to it, the type moves a scale of a quantized weight at most."""
    weight: Any = stored_weight(layer.module)
    moved = weight.scale.to(dtype).to(weight.scale.dtype) / weight.scale - 1
    return float(moved.nan_to_num(0).abs().max())  # A group of zeros may have a scale of 0.


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
