"""What ExecuTorch's backends need to find in a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule, Node

from qcore.graph import arguments
from qcore.lowering import user_input_names

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["explicit_pool_strides", "write_into_copies"]

aten = torch.ops.aten


def explicit_pool_strides(model: GraphModule) -> int:
    """Write out the default stride of pooling, which ExecuTorch's backends read blindly.

    Args:
        model: The graph; changed in place.

    Returns:
        How many nodes changed.
    """
    changed = 0
    for node in model.graph.nodes:
        if node.target not in (aten.max_pool2d.default, aten.avg_pool2d.default):
            continue
        if len(node.args) == 2 or not node.args[2]:
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
            changed += 1
    return changed


def write_into_copies(program: ExportedProgram) -> None:
    """Let what writes into an input of the model write into a copy of it.

    ExecuTorch returns an input that is written into beside the outputs. Who calls a program in
    another process, or from a buffer, sees no write.

    Args:
        program: The exported program; changed in place.
    """
    graph, names = program.graph, user_input_names(program)
    written = {storage for node in graph.nodes for storage in _written(node)}
    inputs = [node for node in graph.find_nodes(op="placeholder") if node.name in names]
    for node in inputs:
        if not written.isdisjoint(_storages(node)):
            with graph.inserting_after(inputs[-1]):
                copied = graph.call_function(aten.clone.default, (node,))
            copied.meta = dict(node.meta)
            node.replace_all_uses_with(copied, lambda user, copied=copied: user is not copied)


def _written(node: Node) -> set[int]:
    """Return the storages that an operator writes into."""
    written = [
        value
        for a, value in zip(arguments(node), node.args, strict=False)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return {storage for value in written if isinstance(value, Node) for storage in _storages(value)}


def _storages(node: Node) -> set[int]:
    value = node.meta.get("val")
    return {value.untyped_storage()._cdata} if isinstance(value, torch.Tensor) else set()
