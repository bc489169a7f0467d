"""From ``set_*`` rules to the configuration of every node: selection, with one meaning everywhere.

The most specific rule wins: node name, module name (the deepest match), module type (the innermost
module), operator type, model input/output, global. ``None`` means: stays in float. The order of the
calls does not matter, except that a later rule with the same key replaces the earlier one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, Final

import torch
from attrs import define, evolve, field, frozen
from torch.fx import GraphModule, Node

from qcore.errors import SelectionError
from qcore.graph import (
    ORIGINAL_NAME,
    ORIGINAL_TARGET,
    control_flow_bodies,
    is_compute_node,
    module_frames,
)
from qcore.names import ModuleRules, nothing_selected, type_name
from qcore.schemes import QuantizationConfig

__all__ = ["FilterFunction", "QuantizationPlan", "Rule", "RuleKind", "Selection", "Selectors"]

#: Says whether a node may be quantized.
FilterFunction = Callable[[Node], bool]


class RuleKind(IntEnum):
    """Kinds of rules, the least specific first."""

    GLOBAL = 0
    IO = 1
    OPERATOR_TYPE = 2
    MODULE_TYPE = 3
    MODULE_NAME = 4
    NODE_NAME = 5
    FILTER = 6

    @property
    def method(self) -> str:
        """The quantizer's method that makes such a rule."""
        return "set_filter_function" if self is RuleKind.FILTER else f"set_{self.name.lower()}"


@frozen
class Rule:
    """One ``set_*`` call: what it selects and the configuration for it."""

    kind: RuleKind
    key: str
    config: QuantizationConfig | None = field(repr=False)

    def __str__(self) -> str:
        arguments = [repr(self.key)] if self.key else []
        arguments.append("None" if self.config is None else "config")
        if self.kind is RuleKind.FILTER:
            arguments = [self.key]
        return f"{self.kind.method}({', '.join(arguments)})"


@frozen
class Selection:
    """What a node was selected for, and by which rule.

    Attributes:
        config: The configuration; ``None`` where the node stays in float.
        rule: The rule that decided; ``None`` where none matched.
    """

    config: QuantizationConfig | None
    rule: Rule | None

    @property
    def is_unset(self) -> bool:
        """Whether no rule says anything about the node."""
        return self.rule is None

    def allows(self, config: QuantizationConfig) -> bool:
        """Say whether a pattern quantized with ``config`` may take this node in."""
        return self.is_unset or self.config == config


_UNSET: Final = Selection(None, None)
_WHERE: Final = "captured graph"


@define
class Selectors:
    """The rules of one quantizer. A rule with a key that is there already replaces it.

    Attributes:
        by_kind: The rules of each kind by what they select, ``""`` where that is everything.
        filter_function: Says of the operators that are selected which may be quantized.
    """

    by_kind: dict[RuleKind, dict[Any, Rule]] = field(
        factory=lambda: {kind: {} for kind in RuleKind if kind is not RuleKind.FILTER}
    )
    filter_function: FilterFunction | None = None

    def add(self, kind: RuleKind, selected: Any, config: QuantizationConfig | None) -> None:
        """Add a rule.

        Args:
            kind: What it goes by.
            selected: An operator, or a packet such as ``torch.ops.aten.conv2d``; a class, or its
                qualified name, for modules of it and of its subclasses; a module's name, for all
                in it, where ``*`` and ``?`` stand for part of one component, ``**`` for any number
                of them; a node's name; ``""`` for the kinds that go by none of these.
            config: The configuration; ``None`` leaves in float.

        Raises:
            SelectionError: Rules of this kind select no such thing.
        """
        match kind:
            case RuleKind.OPERATOR_TYPE:
                if not isinstance(selected, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
                    raise SelectionError(
                        "set_operator_type takes an ATen operator such as "
                        f"torch.ops.aten.linear.default, got {selected!r}. For a module class use "
                        "set_module_type."
                    )
            case RuleKind.MODULE_TYPE:
                if inspect.isclass(selected):
                    selected = type_name(selected)
                elif not isinstance(selected, str):
                    raise SelectionError(
                        "set_module_type takes a module class such as torch.nn.Linear, got "
                        f"{selected!r}. For one module use set_module_name, for an operator "
                        "set_operator_type."
                    )
            case RuleKind.MODULE_NAME:
                if not isinstance(selected, str) or not selected:
                    raise SelectionError(
                        "set_module_name takes a name as in model.named_modules(), got "
                        f"{selected!r}. For the whole model use set_global."
                    )
        self.by_kind[kind][selected] = Rule(kind, str(selected), config)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was selected at all."""
        return not any(self.by_kind.values())

    def rules(self) -> Iterator[Rule]:
        """Iterate over the rules, the least specific first; the filter function is none."""
        for group in self.by_kind.values():
            yield from group.values()

    def mapped(self, convert: Callable[[QuantizationConfig], QuantizationConfig]) -> Selectors:
        """Return a copy with every configuration converted; ``None`` stays as it is."""
        copy = Selectors(filter_function=self.filter_function)
        for kind, group in self.by_kind.items():
            for key, rule in group.items():
                config = None if rule.config is None else convert(rule.config)
                copy.by_kind[kind][key] = evolve(rule, config=config)
        return copy


@define
class QuantizationPlan:
    """The configuration of every node of a model. Read-only for backends.

    Attributes:
        selectors: The rules.
    """

    selectors: Selectors
    _modules: ModuleRules[Rule] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        rules = self.selectors.by_kind
        self._modules = ModuleRules(rules[RuleKind.MODULE_NAME], rules[RuleKind.MODULE_TYPE])

    def config_for(self, node: Node) -> QuantizationConfig | None:
        """Return the configuration of a node, or ``None`` where it stays in float."""
        return self.select(node).config

    def select(self, node: Node) -> Selection:
        """Return the configuration of a node together with the rule that gave it.

        Args:
            node: Any node of the model that this plan is for.

        Returns:
            The selection. Model inputs and outputs are selected by node name, io or global.
        """
        rule = self._deciding_rule(node)
        if rule is None or rule.config is None:
            return Selection(None, rule) if rule else _UNSET
        keep = self.selectors.filter_function
        if keep is not None and is_compute_node(node) and not _kept(keep, node):
            return Selection(None, Rule(RuleKind.FILTER, "...", None))
        return Selection(rule.config, rule)

    def _deciding_rule(self, node: Node) -> Rule | None:
        rules = self.selectors.by_kind
        name = node.meta.get(ORIGINAL_NAME, node.name)
        if name in rules[RuleKind.NODE_NAME]:
            return rules[RuleKind.NODE_NAME][name]
        if node.op in ("placeholder", "output"):
            return rules[RuleKind.IO].get("")
        if rules[RuleKind.MODULE_NAME] or rules[RuleKind.MODULE_TYPE]:
            frames = reversed(module_frames(node))
            found = self._modules.choose([(frame.path, frame.type_name) for frame in frames])
            if found is not None:
                return found[0]
        return self._rule_for_operator(node) or rules[RuleKind.GLOBAL].get("")

    def _rule_for_operator(self, node: Node) -> Rule | None:
        rules = self.selectors.by_kind[RuleKind.OPERATOR_TYPE]
        target = node.meta.get(ORIGINAL_TARGET, node.target)
        if not rules or not isinstance(target, torch._ops.OpOverload):
            return None
        return rules.get(target) or rules.get(target.overloadpacket)

    def check_matches(self, model: GraphModule) -> None:
        """Raise SelectionError for rules that select nothing in a model or its control flow."""
        seen = _Seen.of([model, *(body for _, _, body in control_flow_bodies(model))])
        problems = [
            _vanished(self.selectors.by_kind[RuleKind.MODULE_NAME][key])
            if key in seen.modules - seen.paths
            else text
            for key, text in self._modules.unmatched(seen.paths, seen.types, _WHERE)
        ]
        for kind, known, what in (
            (RuleKind.OPERATOR_TYPE, seen.operators, "operator"),
            (RuleKind.NODE_NAME, seen.nodes, "node"),
        ):
            problems += [
                nothing_selected(rule, rule.key, known, what, _WHERE)
                for rule in self.selectors.by_kind[kind].values()
                if rule.key not in known
            ]
        if problems:
            raise SelectionError("\n".join(problems))


def _vanished(rule: Rule) -> str:
    return (
        f"{rule} selects nothing: {rule.key!r} has no operator of its own in the "
        "captured graph (batch norm is folded into the convolution or linear layer "
        "before it; dropout and identity vanish). Name that layer instead."
    )


def _kept(keep: FilterFunction, node: Node) -> bool:
    try:
        return bool(keep(node))
    except Exception as error:
        raise SelectionError(
            f"The function of set_filter_function stops at {node.name} ({node.target}) with "
            f"{type(error).__name__}: {error}. It gets every operator of the model, and says "
            "whether that is quantized."
        ) from error


@define
class _Seen:
    """What there is to select in some graphs."""

    nodes: set[str] = field(factory=set)
    modules: set[str] = field(factory=set)
    paths: set[str] = field(factory=set)
    types: set[str] = field(factory=set)
    operators: set[str] = field(factory=set)

    @classmethod
    def of(cls, graphs: Iterable[GraphModule]) -> _Seen:
        seen = cls()
        for graph in graphs:
            seen.modules.update(name for name, _ in graph.named_modules())
            for node in graph.graph.nodes:
                seen.nodes.add(node.meta.get(ORIGINAL_NAME, node.name))
                if not is_compute_node(node):
                    continue
                target = node.meta.get(ORIGINAL_TARGET, node.target)
                if isinstance(target, torch._ops.OpOverload):
                    seen.operators.update((str(target), str(target.overloadpacket)))
                for frame in module_frames(node):
                    seen.paths.add(frame.path)
                    seen.types.add(frame.type_name)
        seen.types.discard("")
        return seen


# Kept beside the plan because its messages speak of rules.
def explain(selection: Selection) -> str:
    """Say in words which rule left a node in float."""
    if selection.rule is None:
        return "no rule selects it"
    if selection.rule.kind is RuleKind.FILTER:
        return "the filter function leaves it out"
    return f"{selection.rule} leaves it in float"
