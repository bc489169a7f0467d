"""Computing an operator by others, without changing what the model computes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree

from qcore.graph import remember_origin, tensor_value

__all__ = ["rewrite_by"]


def rewrite_by(
    model: GraphModule,
    node: Node,
    function: Callable[..., Any],
    accept: Callable[[Node], bool],
    *,
    whole: bool,
) -> bool:
    """Put the operators that a function calls in the place of a node.

    Args:
        model: The captured model; changed in place.
        node: The operator to replace. What is put in its place has its module, and remembers its
            name.
        function: Takes the arguments of the node and computes the same.
        accept: Says whether an operator that it calls may stand in the model.
        whole: Keep composite operators that it calls as they are, instead of tracing into them.

    Returns:
        Whether the node was replaced; not where an operator is not accepted, a shape is dynamic,
        or the function makes constants.
    """
    leaves, structure = _pytree.tree_flatten((node.args, node.kwargs))
    sources = [leaf for leaf in leaves if isinstance(leaf, Node)]
    values = [tensor_value(source) for source in sources]
    mode = detect_fake_mode(values)
    if mode is None or any(value is None for value in values):
        return False

    def call(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, Node) else leaf for leaf in leaves]
        args, kwargs = _pytree.tree_unflatten(filled, structure)
        return function(*args, **kwargs)

    with mode:
        traced = make_fx(call, pre_dispatch=whole)(*values).graph
    inner = [n for n in traced.nodes if n.op not in ("placeholder", "output")]
    if not all(n.op == "call_function" and accept(n) for n in inner):
        return False
    remember_origin(node)
    copied: dict[Node, Node] = dict(zip(traced.find_nodes(op="placeholder"), sources, strict=True))
    for made in inner:
        with model.graph.inserting_before(node):
            copied[made] = model.graph.node_copy(made, copied.__getitem__)
        copied[made].meta = {**node.meta, "val": made.meta["val"]}
    _replace(model, node, map_arg(traced.output_node().args[0], copied.__getitem__))
    return True


def _replace(model: GraphModule, node: Node, result: Any) -> None:
    if isinstance(result, Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            assert user.target is operator.getitem
            if user.users:
                user.replace_all_uses_with(result[user.args[1]])
            model.graph.erase_node(user)
    model.graph.erase_node(node)
