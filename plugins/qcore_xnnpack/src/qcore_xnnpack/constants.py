"""What a converted model computes of no input: it is computed when lowering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qcore.lowering import user_input_names
from qcore_executorch.rewriting import Tensors

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["constant_nodes", "fold"]

_PER_CHANNEL: Final = torch.ops.quantized_decomposed.quantize_per_channel.default
# A result may be larger than what it is computed of up to so many bytes.
_LARGEST: Final = 1 << 20


def constant_nodes(program: ExportedProgram) -> frozenset[str]:
    """Find the nodes whose values are the same in every run.

    Weights that are computed from parameters are among them, which ExecuTorch's kernel that
    quantizes per channel ends the process with, where scales are not in double precision. Other
    quantized constants are left: delegates find their quantize and dequantize nodes around them.

    Args:
        program: The exported converted model.

    Returns:
        The names of those that something else reads, and of all that the program holds unchanged.
    """
    varying = user_input_names(program) | set(program.graph_signature.buffers_to_mutate.values())
    varying |= {
        name
        for name, target in program.graph_signature.inputs_to_buffers.items()
        if target in program.graph_signature.buffers_to_mutate.values()
    }
    fixed: set[Node] = set()
    plain: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in varying:
                fixed.add(node)
                plain.add(node)
        elif _computes(node) and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
            if node.target.namespace == "aten" and plain.issuperset(node.all_input_nodes):
                plain.add(node)
    return frozenset(
        node.name
        for node in fixed
        if (node.op == "placeholder" or node.target is _PER_CHANNEL)
        or (node in plain and any(user not in plain for user in node.users) and _is_small(node))
    )


def _computes(node: Node) -> bool:
    """Say whether a node computes a tensor, of the same inputs always the same one."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    # What gives no tensor keeps alive what it asserts of.
    is_tensor = isinstance(node.meta.get("val"), torch.Tensor)
    return is_tensor and torch.Tag.nondeterministic_seeded not in target.tags


def _is_small(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(n, int) for n in value.shape):
        return False
    before = [n.meta.get("val") for n in node.all_input_nodes]
    given = sum(v.nbytes for v in before if isinstance(v, torch.Tensor))
    return bool(value.nbytes <= max(_LARGEST, given))


def fold(model: GraphModule, node: Node, tensors: Tensors) -> None:
    """Compute a node and put its value in its place.

    Args:
        model: The graph; changed in place.
        node: One of :func:`constant_nodes`.
        tensors: What the program holds.
    """

    def value(node: Node) -> Any:
        if node.op == "placeholder":
            return tensors[node.name]
        if node.op == "get_attr":
            return getattr(model, str(node.target))
        target: Any = node.target
        return target(*map_arg(node.args, value), **map_arg(node.kwargs, value))

    with torch.no_grad():
        model.register_buffer(f"_folded_{node.name}", value(node).detach().clone())
    with model.graph.inserting_before(node):
        folded = model.graph.get_attr(f"_folded_{node.name}")
    folded.meta = dict(node.meta)
    node.replace_all_uses_with(folded)
