"""In-place operators, made functional: a backend's table then needs one name for both."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node

from qcore.graph import argument_of, arguments, is_dropout, remember_origin, tensor_value

__all__ = ["WRITES_INTO", "functional_twin", "is_view", "make_functional"]

#: Key in ``node.meta`` of an operator that was left in place: what it writes into.
WRITES_INTO: Final = "qcore_writes_into"


def functional_twin(target: Any) -> Any:
    """Return the operator that computes what an in-place one writes, such as ``aten.relu.default``.

    ``None`` where it writes nothing, more than its first argument, or has no twin with its
    arguments.
    """
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    first, *others = target._schema.arguments
    name = target.overloadpacket.__name__
    if not _is_written(first) or any(map(_is_written, others)) or not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, target.namespace), name.removesuffix("_"), None)
    twin = getattr(packet, target._overloadname, None)
    if twin is None or twin._schema.is_mutable:
        return None
    same = [a.name for a in twin._schema.arguments] == [a.name for a in target._schema.arguments]
    return twin if same else None


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def is_view(node: Node, source: Node) -> bool:
    """Say whether a value may share its memory with an input of its operator.

    Schemas say so of views and in-place operators, and recorded values may. A dropout that does
    nothing returns its input, and neither says so.
    """
    if node.target is operator.getitem or is_dropout(node):
        return True
    if not (given := arguments(node)):
        return False
    shared = [a.name for a in given if a.alias_info is not None]
    if any(argument_of(node, name, None) is source for name in shared):
        return True
    return not _storages(node).isdisjoint(_storages(source))


def _storages(node: Node) -> set[int]:
    values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}


def make_functional(model: GraphModule) -> int:
    """Replace in-place operators by those that return a new value, where that changes nothing else.

    What reads the tensor later reads the new value. An operator is left alone where something
    outlives it that has to see the write: a parameter, a buffer or an input of the model, or a
    value that shares its memory, as views do, and is read later; or where the new value would have
    another type.

    Args:
        model: A captured or exported graph; changed in place. Nodes keep their names.

    Returns:
        How many operators were replaced.
    """
    order = {node: index for index, node in enumerate(model.graph.nodes)}
    roots: dict[Node, Node] = {}
    sharing: dict[Node, list[Node]] = {}
    changed = 0
    for node in model.graph.nodes:
        twin = functional_twin(node.target) if node.op == "call_function" else None
        source = node.args[0] if twin is not None and node.args else None
        if isinstance(source, Node):
            shared = _seen_later(node, sharing[roots[source]], order)
            if shared is None and _gives_same_type(node, twin):
                remember_origin(node)
                node.target = twin
                later = {user for user in source.users if order[user] > order[node]}
                source.replace_all_uses_with(node, later.__contains__, propagate_meta=False)
                changed += 1
            elif shared is not None and shared.op != "placeholder":
                node.meta[WRITES_INTO] = str(shared.target if shared.op == "get_attr" else shared)
        owner = next((n for n in node.all_input_nodes if is_view(node, n)), None)
        roots[node] = node if owner is None else roots[owner]
        sharing.setdefault(roots[node], []).append(node)
    if changed:
        model.recompile()
    return changed


def _seen_later(node: Node, sharing: list[Node], order: dict[Node, int]) -> Node | None:
    """Return what would notice that a node no longer writes into what these share, if anything."""
    if sharing[0].op != "call_function":
        return sharing[0]
    for other in sharing:
        if other is not node.args[0] and any(order[user] > order[node] for user in other.users):
            return other
    return None


def _gives_same_type(node: Node, twin: Any) -> bool:
    value = tensor_value(node)
    if not isinstance(value, FakeTensor):
        return False
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with value.fake_mode:
        result = twin(*args, **kwargs)
    return isinstance(result, torch.Tensor) and result.dtype == value.dtype
