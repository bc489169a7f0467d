"""Rewrites into the operators that XNNPACK takes, with the same outputs.

Without them a graph breaks into several delegates at operators that XNNPACK has under another
form: it averages with kept dimensions only, knows views but no squeezes, slices but no splits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.graph import ORIGINAL_TARGET, is_float_tensor
from qcore.plan import QuantizationPlan

__all__ = ["to_xnnpack_operators"]

aten = torch.ops.aten

_Rewrite = Callable[[Node], Node | None]


def to_xnnpack_operators(model: GraphModule, plan: QuantizationPlan) -> GraphModule:
    """Rewrite the operators that will be quantized into those that XNNPACK takes.

    Args:
        model: The captured model; changed in place.
        plan: Tells which operators will be quantized; the others are kept as they are.

    Returns:
        The model.
    """
    changed = False
    for node in list(model.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        config = plan.config_for(node) if rewrite else None
        if rewrite is None or config is None or config.output_activation is None:
            continue
        if node.target is aten.dropout.default and config.is_qat:
            continue  # Training may switch it on again.
        replacement = rewrite(node)
        if replacement is not None:
            _take_over(node, replacement)
            changed = True
    if changed:
        model.recompile()
    return model


def _take_over(node: Node, replacement: Node) -> None:
    """Put a new node in place of an old one, under its name: rules and reports go by names."""
    is_new = replacement not in node.all_input_nodes
    node.replace_all_uses_with(replacement, propagate_meta=False)
    node.graph.erase_node(node)
    if is_new:
        replacement.name = node.name


def _insert(node: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """Insert an operator before ``node``, computing its fake value."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args)
    new.meta = {**node.meta, ORIGINAL_TARGET: node.meta.get(ORIGINAL_TARGET, node.target)}
    values = torch.fx.map_arg(args, lambda n: n.meta["val"])
    fake_mode = next(a.meta["val"].fake_mode for a in new.all_input_nodes)
    with fake_mode:
        new.meta["val"] = target(*values)
    return new


def _static_shape(sizes: Sequence[int | torch.SymInt]) -> list[int] | None:
    """Return sizes for ``reshape``, in which one dimension may be dynamic."""
    shape = [size if isinstance(size, int) else -1 for size in sizes]
    return shape if shape.count(-1) <= 1 else None


def _as_view(node: Node) -> Node | None:
    shape = _static_shape(node.meta["val"].shape)
    if shape is None or not is_float_tensor(node):
        return None
    return _insert(node, aten.reshape.default, (node.args[0], shape))


def _kept_mean(node: Node) -> Node | None:
    source: Any = node.args[0]
    dims: Any = node.args[1] if len(node.args) > 1 else None
    keep = node.args[2] if len(node.args) > 2 else False
    if keep or node.kwargs or dims is None or not is_float_tensor(node):
        return None
    rank = source.meta["val"].dim()
    shape = _static_shape(node.meta["val"].shape)
    if rank != 4 or sorted(d % rank for d in dims) != [2, 3] or shape is None:
        return None
    mean = _insert(node, aten.mean.dim, (source, [2, 3], True))
    return _insert(node, aten.reshape.default, (mean, shape))


def _pieces(node: Node) -> Iterator[int] | None:
    values = node.meta["val"]
    axis: Any = node.args[2] if len(node.args) > 2 else 0
    sizes = [value.shape[axis] for value in values]
    return iter(sizes) if all(isinstance(size, int) for size in sizes) else None


def _as_slices(node: Node) -> Node | None:
    sizes = _pieces(node)
    users = list(node.users)
    if sizes is None or any(user.target is not operator.getitem for user in users):
        return None
    source: Any = node.args[0]
    if not is_float_tensor(source):
        return None
    axis = node.args[2] if len(node.args) > 2 else 0
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    for user in users:
        index: Any = user.args[1]
        first, end = bounds[index]
        piece = _insert(node, aten.slice.Tensor, (source, axis, first, end))
        piece.meta["val"] = user.meta["val"]
        _take_over(user, piece)
    return source


def _without_dropout(node: Node) -> Node | None:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", True)
    return None if training else node.args[0]


def _plain_sub(node: Node) -> Node | None:
    if len(node.args) > 2 or node.kwargs or not is_float_tensor(node):
        return None
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.sub.Tensor, (node.args[1], node.args[0]))
    new.meta = {**node.meta, ORIGINAL_TARGET: node.target}
    return new


_REWRITES: Final[dict[Any, _Rewrite]] = {
    aten.squeeze.default: _as_view,
    aten.squeeze.dim: _as_view,
    aten.squeeze.dims: _as_view,
    aten.unsqueeze.default: _as_view,
    aten.flatten.using_ints: _as_view,
    aten.mean.dim: _kept_mean,
    aten.chunk.default: _as_slices,
    aten.split.Tensor: _as_slices,
    aten.split_with_sizes.default: _as_slices,
    aten.dropout.default: _without_dropout,
    aten.dropout_.default: _without_dropout,
    aten.rsub.Scalar: _plain_sub,
}
