"""torchao's quantization written as arithmetic, for ExecuTorch has no kernels of it."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import TYPE_CHECKING, Final

import torch

from qcore.annotation import rewrite_by
from qcore_executorch.inspection import quantizes

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = ["write_out_affine"]


_LAYERS: Final = {torch.ops.aten.linear.default, torch.ops.aten.conv2d.default}


def write_out_affine(model: GraphModule, refused: Container[str] | None) -> None:
    """Write out the quantization of what no delegate may take.

    Delegates fuse torchao's operators into the layer that reads them. A layer that stays outside,
    and whatever reads a layer's weight and is none, read values that ordinary operators make.

    Args:
        model: The graph of a model treated by ``quantize_``; changed in place.
        refused: The names of the nodes that stay outside; None: all do.
    """
    for node in list(model.graph.nodes):
        if _is_affine(node) and all(_stays_outside(r, refused) for r in _readers(node)):
            rewrite_by(model, node, node.target.decompose, lambda _: True, whole=False)


def _is_affine(node: Node) -> bool:
    return getattr(node.target, "namespace", "") == "torchao" and quantizes(node)


def _stays_outside(reader: Node, refused: Container[str] | None) -> bool:
    # A quantized embedding has a kernel.
    if reader.target is torch.ops.aten.embedding.default:
        return False
    return reader.target not in _LAYERS or refused is None or reader.name in refused


def _readers(node: Node) -> set[Node]:
    """Return what reads a quantized value, behind the operators that belong to quantization."""
    found: set[Node] = set()
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if not _is_affine(user) and user.target is not operator.getitem:
                found.add(user)
            elif user not in seen:
                seen.add(user)
                pending.append(user)
    return found
