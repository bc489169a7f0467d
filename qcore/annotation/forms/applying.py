"""What a form is, and the walk that uses the forms of a backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch.fx import GraphModule, Node

from qcore.annotation.layers import layer_of
from qcore.annotation.patterns import BATCH_NORMS, SupportTable
from qcore.annotation.rewriting import rewrite_by
from qcore.graph import is_dropout, is_float_tensor
from qcore.plan import QuantizationPlan

__all__ = ["Form", "Written", "always", "in_quantizable_forms"]


@frozen
class Written:
    """An operator written as others.

    Attributes:
        function: Computes the same of the arguments.
        arguments: What it is called with; ``None`` for the arguments of the node. A tensor among
            them becomes a constant of the model.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] | None = None


#: Takes the model and a node, says how it is written as others, and changes neither; ``None``
#: leaves it as it is.
Form: TypeAlias = "Callable[[GraphModule, Node], Written | None]"


def always(function: Callable[..., Any]) -> Form:
    """Make a form of a function that takes the arguments of the operator."""
    written = Written(function)
    return lambda model, node: written


def in_quantizable_forms(
    model: GraphModule,
    plan: QuantizationPlan,
    table: SupportTable,
    forms: Mapping[Any, Form],
    *,
    composites: bool = False,
) -> None:
    """Write operators as operators of a support table, where they will be quantized.

    What stays in float is kept; with dynamic activations, only layers that the table lacks are
    written otherwise.

    Args:
        model: The captured model; changed in place.
        plan: Tells which operators will be quantized.
        table: What the backend quantizes. An operator is rewritten only if each operator that
            would take its place stands in it.
        forms: Operator -> its form, such as :data:`FORMS` and those of the backend.
        composites: Also decompose operators without a form that the table lacks and that torch
            itself composes of others.
    """

    def is_known(node: Node) -> bool:
        return node.target is operator.getitem or table.pattern_for(node) is not None

    for node in list(model.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        form = forms.get(node.target)
        if form is None and not (composites and not is_known(node) and _is_composite(node)):
            continue
        config = plan.config_for(node)
        if config is None or (config.is_qat and _matters_in_training(node)):
            continue
        if config.output_activation is None and (is_known(node) or layer_of(node) is None):
            continue
        if form is None:
            rewrite_by(model, node, node.target, is_known, whole=False)
            continue
        written = form(model, node)
        if written is not None and not (config.is_qat and _holds_weights(node, written)):
            rewrite_by(
                model, node, written.function, is_known, whole=True, arguments=written.arguments
            )


def _matters_in_training(node: Node) -> bool:
    """Say whether training switches a node on again, or folds it into the layer before it."""
    source = node.args[0]
    follows_layer = isinstance(source, Node) and layer_of(source) is not None
    return is_dropout(node) or (node.target in BATCH_NORMS and follows_layer)


def _holds_weights(node: Node, written: Written) -> bool:
    """Say whether a layer's weights would be constants of its form, which no optimizer is given."""
    arguments = written.arguments or ()
    return layer_of(node) is not None and any(isinstance(a, torch.Tensor) for a in arguments)


def _is_composite(node: Node) -> bool:
    target: Any = node.target
    if not target._can_decompose():
        return False
    return is_float_tensor(node) or any(map(is_float_tensor, node.all_input_nodes))
