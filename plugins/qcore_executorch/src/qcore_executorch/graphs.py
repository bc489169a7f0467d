"""What ExecuTorch's backends need to find in a graph."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

__all__ = ["explicit_pool_strides"]

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
