"""Clamps as the operators that ExecuTorch's delegates fuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.graph import is_float_tensor, remember_origin
from qcore.plan import QuantizationPlan

__all__ = ["clamps_to_hardtanh"]

aten = torch.ops.aten

# clamp -> its forms as hardtanh (two bounds) and as relu (a lower bound of 0).
_CLAMPS: Final[dict[Any, tuple[Any, Any]]] = {
    aten.clamp.default: (aten.hardtanh.default, aten.relu.default),
    aten.clamp_min.default: (aten.hardtanh.default, aten.relu.default),
    aten.relu6.default: (aten.hardtanh.default, aten.relu.default),
}


def clamps_to_hardtanh(
    model: GraphModule, plan: QuantizationPlan, after: Collection[Any] = ()
) -> GraphModule:
    """Rewrite clamps with constant bounds as ``hardtanh`` or ``relu``, which compute the same.

    For backends that fuse only those. Clamps that the user left in float are kept.

    Args:
        model: The captured model; changed in place.
        plan: Tells which clamps were left in float on purpose.
        after: Rewrite only those that follow one of these operators; if empty, all.

    Returns:
        The model.
    """
    changed = False
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target not in _CLAMPS:
            continue
        selection = plan.select(node)
        left_in_float = selection.config is None and not selection.is_unset
        if left_in_float or not is_float_tensor(node):
            continue
        if after and node.args[0].target not in after:
            continue
        original = node.target
        remember_origin(node)
        hardtanh, relu = _CLAMPS[original]
        low, high = _bounds(node)
        if low == 0 and high is None:
            node.target, node.args, node.kwargs = relu, (node.args[0],), {}
        # torch.clamp with min > max gives max everywhere; hardtanh refuses that.
        elif isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high:
            node.target, node.args = hardtanh, (node.args[0], float(low), float(high))
            node.kwargs = {}
        if node.target is not original:
            changed = True
    if changed:
        model.recompile()
    return model


def _bounds(node: Node) -> tuple[Any, Any]:
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    return low, high
