"""Computing an operator by others, without changing what the model computes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree

from qcore.graph import insert_constant, remember_origin, tensor_value

__all__ = ["rewrite_by"]


def rewrite_by(
    model: GraphModule,
    node: Node,
    function: Callable[..., Any],
    accept: Callable[[Node], bool],
    *,
    whole: bool,
    arguments: tuple[Any, ...] | None = None,
) -> bool:
    """Put the operators that a function calls in the place of a node.

    Args:
        model: The captured model; changed in place.
        node: The operator to replace. What is put in its place has its module, and remembers its
            name.
        function: Computes the same of ``arguments``.
        accept: Says whether an operator that it calls may stand in the model.
        whole: Keep composite operators that it calls as they are, instead of tracing into them.
        arguments: What the function is called with instead of the node's arguments; a tensor among
            them becomes a constant of the model.

    Returns:
        Whether the node was replaced; not where an operator is not accepted, a shape is dynamic,
        or the function makes constants. The model is then untouched.
    """
    given = (node.args, node.kwargs) if arguments is None else (arguments, {})
    leaves, structure = _pytree.tree_flatten(given)
    sources = [leaf for leaf in leaves if isinstance(leaf, (Node, torch.Tensor))]
    mode = detect_fake_mode([tensor_value(source) for source in sources])
    if mode is None:
        return False
    values = [
        tensor_value(source)
        if isinstance(source, Node)
        else mode.from_tensor(source, static_shapes=True)
        for source in sources
    ]
    if any(value is None for value in values):
        return False

    def call(*tensors: torch.Tensor) -> Any:
        taken = iter(tensors)
        filled = [next(taken) if isinstance(x, (Node, torch.Tensor)) else x for x in leaves]
        args, kwargs = _pytree.tree_unflatten(filled, structure)
        return function(*args, **kwargs)

    with mode:
        traced = make_fx(call, pre_dispatch=whole)(*values).graph
    inner = [n for n in traced.nodes if n.op not in ("placeholder", "output")]
    if not all(n.op == "call_function" and accept(n) for n in inner):
        return False
    remember_origin(node)
    like = next(source for source in sources if isinstance(source, Node))
    inputs = [s if isinstance(s, Node) else _constant(model, node, s, like) for s in sources]
    copied: dict[Node, Node] = dict(zip(traced.find_nodes(op="placeholder"), inputs, strict=True))
    for made in inner:
        with model.graph.inserting_before(node):
            copied[made] = model.graph.node_copy(made, copied.__getitem__)
        copied[made].meta = {**node.meta, "val": made.meta["val"]}
    added = [copied[made] for made in inner]
    _replace(model, node, map_arg(traced.output_node().args[0], copied.__getitem__), added)
    for unread in reversed(added):
        if not unread.users:
            model.graph.erase_node(unread)
    return True


def _constant(model: GraphModule, node: Node, value: torch.Tensor, like: Node) -> Node:
    names = (f"_{node.name}_constant_{index}" for index in itertools.count())
    name = next(name for name in names if not hasattr(model, name))
    model.register_buffer(name, value.detach())
    return insert_constant(model, node, name, like)


def _replace(model: GraphModule, node: Node, result: Any, added: list[Node]) -> None:
    pairs = [(node, result)]
    if not isinstance(result, Node):
        assert all(user.target is operator.getitem for user in node.users)
        # Of what nothing reads the function need not give a value.
        users = [(user, result[user.args[1]] if user.users else None) for user in node.users]
        pairs = [*users, (node, None)]
    for before, after in pairs:
        if after is not None:
            before.replace_all_uses_with(after, propagate_meta=False)
        model.graph.erase_node(before)
        if after in added:
            # The value keeps its name, which reports and rules go by.
            after.name = before.name
