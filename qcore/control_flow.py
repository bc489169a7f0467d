"""Constants of conditional and loop bodies: inside to be quantized, outside to be exported."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qcore.graph import PARAMETER_NAME, control_flow_bodies, tensor_attribute

__all__ = [
    "direct_bodies",
    "drop_unread_operands",
    "operands_of",
    "raise_constants",
    "replace_body",
    "sink_all_parameters",
    "sink_parameters",
]


def direct_bodies(model: GraphModule) -> list[tuple[str, Node, GraphModule]]:
    """Return the bodies that a graph runs itself, without those inside of them."""
    return [found for found in control_flow_bodies(model) if "." not in found[0]]


def replace_body(model: GraphModule, path: str, body: GraphModule) -> None:
    """Put another graph in place of a body, by its name in a model around it."""
    parent, _, name = path.rpartition(".")
    owner = operator.attrgetter(parent)(model) if parent else model
    setattr(owner, name, body)


def _operand_groups(call: Node) -> list[int]:
    """Return the positions in ``call.args`` that hold operands, the ones a loop carries first."""
    return [i for i, argument in enumerate(call.args) if isinstance(argument, (tuple, list))]


def operands_of(call: Node) -> list[Any]:
    """Return what a conditional or loop passes to its bodies, what a loop carries first."""
    groups: list[Any] = [call.args[position] for position in _operand_groups(call)]
    return [operand for group in groups for operand in group]


def sink_all_parameters(model: GraphModule) -> None:
    """Let the bodies that a graph runs read their parameters themselves; see the next function.

    Operands that no body reads any more are dropped.
    """
    calls: dict[Node, list[GraphModule]] = {}
    for _, call, body in direct_bodies(model):
        sink_parameters(model, call, body)
        calls.setdefault(call, []).append(body)
    for call, bodies in calls.items():
        drop_unread_operands(call, bodies)
    if calls:
        model.recompile()


def sink_parameters(model: GraphModule, call: Node, body: GraphModule) -> None:
    """Let a control-flow body read its parameters itself instead of as operands.

    Export passes a body everything that it closes over. As operands, weights cannot be quantized
    ahead of time; as attributes of the body they can. The operands stay, unused.
    """
    *carried, _ = _operand_groups(call)  # A loop replaces what it carries.
    kept = sum(len(call.args[position]) for position in carried)
    placeholders = body.graph.find_nodes(op="placeholder")
    pairs = list(zip(operands_of(call), placeholders, strict=True))[kept:]
    for operand, placeholder in pairs:
        if not isinstance(operand, Node) or operand.op != "get_attr" or not placeholder.users:
            continue
        name = f"_sunk_{str(operand.target).replace('.', '_')}"
        tensor = tensor_attribute(model, operand)
        if isinstance(tensor, torch.nn.Parameter):
            body.register_parameter(name, tensor)
        else:
            body.register_buffer(name, tensor)
        with body.graph.inserting_after(placeholders[-1]):
            attribute = body.graph.get_attr(name)
        attribute.meta.update(placeholder.meta)
        attribute.meta[PARAMETER_NAME] = operand.meta.get(PARAMETER_NAME, str(operand.target))
        placeholder.replace_all_uses_with(attribute)
    body.recompile()


def raise_constants(model: GraphModule) -> None:
    """Pass the bodies of a converted model their constants as operands, as export has them.

    Bodies that own tensors cannot be decomposed. Operands that no body reads any more, such as the
    float weights of quantized layers, are dropped. Inner bodies come first.
    """
    calls: dict[Node, dict[str, GraphModule]] = {}
    for name, call, body in direct_bodies(model):
        raise_constants(body)
        calls.setdefault(call, {})[name] = body
    for call, bodies in calls.items():
        for name, body in bodies.items():
            _raise_from(model, call, name, body, list(bodies.values()))
        drop_unread_operands(call, list(bodies.values()))
    if calls:
        model.graph.eliminate_dead_code()
        model.recompile()


def _raise_from(
    model: GraphModule, call: Node, name: str, body: GraphModule, siblings: list[GraphModule]
) -> None:
    raised: dict[str, Node] = {}
    for node in body.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        value = operator.attrgetter(target)(body)
        if not isinstance(value, torch.Tensor):
            continue
        if target not in raised:
            outer = f"{name}_{target}".replace(".", "_")
            model.register_buffer(outer, value.detach())
            with model.graph.inserting_before(call):
                attribute = model.graph.get_attr(outer)
            attribute.meta = dict(node.meta)
            position = _operand_groups(call)[-1]
            operands: Any = call.args[position]
            call.update_arg(position, (*operands, attribute))
            for sibling in siblings:
                with sibling.graph.inserting_after(sibling.graph.find_nodes(op="placeholder")[-1]):
                    placeholder = sibling.graph.placeholder(outer)
                placeholder.meta = dict(node.meta)
                if sibling is body:
                    raised[target] = placeholder
        node.replace_all_uses_with(raised[target])
        body.graph.erase_node(node)


def drop_unread_operands(call: Node, bodies: list[GraphModule]) -> None:
    """Drop the operands of a conditional or loop that none of its bodies reads.

    Args:
        call: The ``cond`` or ``while_loop`` operator; what a loop carries stays.
        bodies: Its bodies; changed in place, their code included.
    """
    *carried, position = _operand_groups(call)
    offset = sum(len(call.args[p]) for p in carried)
    operands: Any = call.args[position]
    placeholders = [body.graph.find_nodes(op="placeholder") for body in bodies]
    kept = []
    for index, operand in enumerate(operands):
        seen = [nodes[offset + index] for nodes in placeholders]
        if any(node.users for node in seen):
            kept.append(operand)
            continue
        for body, node in zip(bodies, seen, strict=True):
            body.graph.erase_node(node)
    call.update_arg(position, tuple(kept))
    for body in bodies:
        body.recompile()
