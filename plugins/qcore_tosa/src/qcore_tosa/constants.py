"""What depends on no input is computed once, when a model is quantized."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qcore.graph import insert_constant, tensor_attribute, tensor_value
from qcore.plan import QuantizationPlan

__all__ = ["depending_on", "fold_constants"]

# What models of text fill masks with; ExecuTorch's passes write -inf as what fits a range of int8.
_ENDLESS: Final = torch.finfo(torch.float32).max / 2

# Operators that take a tensor for its shape.
_SHAPE_ONLY: Final = re.compile(r"\baten\.(\w+_like|new_\w+)\b")

# What takes a tensor for its size and type alone -> its value.
_OF_A_SHAPE: Final = {torch.ops.aten.ones_like.default: 1, torch.ops.aten.zeros_like.default: 0}


def fold_constants(model: GraphModule, plan: QuantizationPlan) -> None:
    """Put constants in the place of what is computed of constants alone.

    Models of text compute positions, masks and the distances between tokens with integers, which
    TOSA has few operators for. What a rule leaves in float is kept, and what training changes.

    Args:
        model: The captured model; changed in place.
        plan: What the user selected.
    """
    nodes = list(model.graph.nodes)
    values: dict[Node, Any] = {}
    for node in nodes:
        if node.op == "get_attr" and isinstance(tensor_value(node), torch.Tensor):
            values[node] = tensor_attribute(model, node)
        elif node.target in _OF_A_SHAPE and _computes(node, plan) and _has_fixed_size(node):
            like = node.meta["val"]
            values[node] = torch.full(like.shape, _OF_A_SHAPE[node.target], dtype=like.dtype)
        elif _computes(node, plan) and values.keys() >= set(node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node in nodes:
        # Creating a constant is for annotation to decide, as is returning one.
        readers = [user for user in node.users if user not in values]
        if node.op != "call_function" or node not in values or not node.all_input_nodes:
            continue
        if readers and all(user.op != "output" for user in readers):
            _replace(model, node, values[node])
    for node in reversed(nodes):
        if node in values and node.op == "call_function" and not node.users:
            model.graph.erase_node(node)
    model.recompile()


def depending_on(inputs: Iterable[Node]) -> set[Node]:
    """Return some nodes and all that depend on their values, not on their shapes alone.

    Args:
        inputs: The nodes, of one graph.

    Returns:
        They and what reads them, directly or not.
    """
    pending = list(inputs)
    found = set(pending)
    while pending:
        users = {u for u in pending.pop().users if not _SHAPE_ONLY.search(str(u.target))}
        pending += users - found
        found |= users
    return found


def _computes(node: Node, plan: QuantizationPlan) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or tensor_value(node) is None:
        return False
    config = plan.config_for(node)
    drawn = torch.Tag.nondeterministic_seeded in target.tags
    return config is not None and not config.is_qat and not drawn and not target._schema.is_mutable


def _has_fixed_size(node: Node) -> bool:
    return all(isinstance(size, int) for size in node.meta["val"].shape)


def _replace(model: GraphModule, node: Node, value: torch.Tensor) -> None:
    value = value.detach().clone()
    if value.is_floating_point():
        endless = value.abs() > _ENDLESS
        value[endless] = value[endless].sign() * torch.inf
    name = f"_{node.name}_folded"
    model.register_buffer(name, value)
    constant = insert_constant(model, node, name, node)
    node.replace_all_uses_with(constant)
