"""Positions of the largest of floats, which the NPU gives as 32-bit integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from qcore.graph import computes_floats, tensor_value
from qcore_tosa.positions import is_argmax

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = ["return_int32"]


def return_int32(model: GraphModule) -> None:
    """Let a model return as int32 the positions, and what it computes of them in 32 bits.

    The passes of ExecuTorch 1.4 do so by themselves. Those of 1.5 give results the 64 bits that
    they had, for which the CPU would have to cast them.

    Args:
        model: The model after these passes; changed in place.
    """
    cast = torch.ops.dim_order_ops._to_dim_order_copy.default  # by which the passes cast
    output = model.graph.output_node()
    for node in output.all_input_nodes:
        if _dtype(node) is not torch.int64:
            continue
        if is_argmax(node) and computes_floats(node.all_input_nodes[0]):
            _return(output, node, _narrowed(node, cast))
        elif node.target is cast and _dtype(node.all_input_nodes[0]) is torch.int32:
            _return(output, node, node.all_input_nodes[0])
    model.recompile()


def _dtype(node: Node) -> torch.dtype | None:
    value = tensor_value(node)
    return None if value is None else value.dtype


def _narrowed(node: Node, cast: Any) -> Node:
    with node.graph.inserting_after(node):
        made = node.graph.call_function(cast, (node,), {"dtype": torch.int32})
    made.meta = {**node.meta, "val": node.meta["val"].to(torch.int32)}
    return made


def _return(output: Node, node: Node, other: Node) -> None:
    output.replace_input_with(node, other)
    if not node.users:
        node.graph.erase_node(node)
