"""Operators with what may be fused into them: the patterns that backends quantize as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeAlias

import torch
from attrs import field, frozen
from torch.fx import GraphModule, Node

from qcore.annotation.in_place import WRITES_INTO, functional_twin
from qcore.grammar import Granularity
from qcore.graph import is_float_tensor, operator_name, tensor_value
from qcore.plan import QuantizationPlan
from qcore.schemes import QuantizationConfig

__all__ = [
    "BATCH_NORMS",
    "CLAMPS",
    "INTEGERS_ONLY",
    "AnnotationRule",
    "Check",
    "OperatorMatch",
    "OperatorPattern",
    "Rejection",
    "SupportTable",
    "without_float32",
]

aten = torch.ops.aten

#: Activations that only clamp: an integer kernel applies them while it rounds its result.
CLAMPS: Final[tuple[Any, ...]] = (
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
)

#: What torch.export leaves of a batch norm; in QAT torchao folds it into the convolution before it.
BATCH_NORMS: Final[tuple[Any, ...]] = (aten.batch_norm.default,)


@frozen
class Rejection:
    """Why a match stays in float, and what to try."""

    reason: str
    advice: str = ""


#: For operators that neither read nor give a float tensor.
INTEGERS_ONLY: Final = Rejection("it computes integers or booleans: there is nothing to quantize")


def without_float32(node: Node) -> Rejection | None:
    """Reject operators that neither read nor give float32."""
    nodes = (*node.all_input_nodes, node)
    if any(map(is_float_tensor, nodes)):
        return None
    others = {value.dtype for n in nodes if (value := tensor_value(n)) is not None}
    floats = sorted(str(d).removeprefix("torch.") for d in others if d.is_floating_point)
    if not floats:
        return INTEGERS_ONLY
    return Rejection(
        f"it computes in {', '.join(floats)}, and only float32 is quantized",
        "Cast the model to float32 first.",
    )


#: Says why a match cannot be quantized with a configuration; ``None`` where it can.
Check: TypeAlias = "Callable[[OperatorMatch, QuantizationConfig, GraphModule], Rejection | None]"


class AnnotationRule(Protocol):
    """Places the qspecs of a configuration on a match, or says why it cannot.

    A rule for operators with a weight has its position as ``weight``; others are never asked to
    place a weight-only configuration.
    """

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate the nodes of ``match``; returns a rejection where nothing was annotated."""
        ...


@frozen
class OperatorPattern:
    """An operator that a backend quantizes: one row of its support table.

    Attributes:
        name: A short name for reports, such as ``conv2d``.
        targets: The operators that it stands for.
        rule: Places the qspecs on a match.
        fuses: Activations that run as part of the operator, when nothing else reads its result.
        may_fuse: Says whether such an activation really may run as part of it.
        folds_batch_norm: Whether a batch norm after it belongs to it in QAT.
        dynamic: Whether the backend runs it with dynamic activations.
        static: Whether the backend runs it with static activations.
        follows_input: Whether it is quantized with its input where no rule selects it.
        shares_range: Whether it is annotated last, with one range for everything that such
            operators connect; ``rule`` is then not used. See :mod:`qcore.annotation.clusters`.
        granularity: How finely the backend scales its weights: ``"per_tensor"`` or
            ``"per_channel"``; ``None`` where it takes both. A configuration of another one is
            rejected; one that leaves it open, of a ``per_operator`` scheme, gets this one, and
            per channel for ``None``.
        checks: Each says why a match cannot be quantized, or ``None``; the first reason counts.
    """

    name: str
    targets: tuple[Any, ...] = field(converter=tuple)
    rule: AnnotationRule | None
    fuses: tuple[Any, ...] = ()
    may_fuse: Callable[[Node, QuantizationConfig], bool] | None = None
    folds_batch_norm: bool = False
    dynamic: bool = False
    static: bool = True
    follows_input: bool = False
    shares_range: bool = False
    granularity: Granularity | None = None
    checks: tuple[Check, ...] = ()


@frozen
class OperatorMatch:
    """A pattern found in a graph.

    Attributes:
        pattern: What was found.
        root: The operator.
        batch_norm: The batch norm after it, in QAT.
        activation: The activation fused into it.
    """

    pattern: OperatorPattern
    root: Node
    batch_norm: Node | None = None
    activation: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the match, in the order of the data."""
        return tuple(n for n in (self.root, self.batch_norm, self.activation) if n is not None)

    @property
    def output(self) -> Node:
        """The node whose value leaves the match."""
        return self.nodes[-1]

    def rejection(self, config: QuantizationConfig, model: GraphModule) -> Rejection | None:
        """Return the first reason of the pattern's checks against quantizing it, if any."""
        written = self.root.meta.get(WRITES_INTO)
        if written is not None:
            return Rejection(
                f"it writes into {written}, which something else reads, too",
                "Compute a new value instead: the operator without the underscore at its end.",
            )
        found = (check(self, config, model) for check in self.pattern.checks)
        return next(filter(None, found), None)

    @property
    def label(self) -> str:
        """Names for reports, as in ``conv2d + hardtanh``."""
        fused = [operator_name(node).split(".")[1].rstrip("_") for node in self.nodes[1:]]
        return " + ".join([self.pattern.name, *fused])


def _patterns(given: Iterable[OperatorPattern]) -> tuple[OperatorPattern, ...]:
    return tuple(given)


@frozen
class SupportTable:
    """The operators that a backend quantizes, as data.

    Attributes:
        patterns: The rows. An operator stands in one row only.
        advice: For operators that are in no row: what to try, by operator.
    """

    patterns: tuple[OperatorPattern, ...] = field(converter=_patterns)
    advice: dict[Any, str] = field(factory=dict)
    _by_target: dict[Any, OperatorPattern] = field(init=False, repr=False, eq=False)

    @_by_target.default
    def _index(self) -> dict[Any, OperatorPattern]:
        index: dict[Any, OperatorPattern] = {}
        for pattern in self.patterns:
            for target in pattern.targets:
                if target in index:
                    raise ValueError(
                        f"{target} stands in two rows: {index[target].name}, {pattern.name}"
                    )
                index[target] = pattern
        return index

    def __iter__(self) -> Iterator[OperatorPattern]:
        return iter(self.patterns)

    def pattern_for(self, node: Node) -> OperatorPattern | None:
        """Return the row of a node's operator, if there is one.

        An operator that writes in place has that of its functional twin, if none of its own.
        """
        return self._by_target.get(node.target) or self._by_target.get(functional_twin(node.target))

    def match(
        self, node: Node, config: QuantizationConfig, plan: QuantizationPlan
    ) -> OperatorMatch | None:
        """Find the largest pattern that starts at a node.

        A value with a second user is never fused over, nor is a node that was selected for
        something other than ``config``.

        Args:
            node: The operator to start from.
            config: What it is to be quantized with.
            plan: Tells what the nodes after it were selected for.

        Returns:
            The match, or ``None`` where the operator is in no row.
        """
        pattern = self.pattern_for(node)
        if pattern is None:
            return None
        if config.output_activation is None:
            return OperatorMatch(pattern, node)
        batch_norm = None
        if pattern.folds_batch_norm and config.is_qat:
            batch_norm = _follower(node, BATCH_NORMS, config, plan)
        activation = _follower(batch_norm or node, pattern.fuses, config, plan)
        if activation is not None and pattern.may_fuse is not None:
            activation = activation if pattern.may_fuse(activation, config) else None
        return OperatorMatch(pattern, node, batch_norm, activation)


def _follower(
    node: Node, targets: Iterable[Any], config: QuantizationConfig, plan: QuantizationPlan
) -> Node | None:
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_function" or user.target not in targets or user.args[0] is not node:
        return None
    return user if plan.select(user).allows(config) else None
