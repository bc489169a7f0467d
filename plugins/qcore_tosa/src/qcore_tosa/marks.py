"""What ExecuTorch's passes and partitioners for Arm read in the metadata of nodes."""

from __future__ import annotations

from typing import Final

from torch.fx import Node

from qcore.graph import operator_name

__all__ = ["KEEP", "is_argmax", "mark_quantized"]

#: Key in ``node.meta``: passes transform a node unless this is true (``arm/constants.py``).
KEEP: Final = "_arm_disallow_tfa"

# Key in a node's ``custom`` metadata (``backends/arm/common/annotation_meta.py``).
_QUANTIZED: Final = "_arm_annotation_info"


def mark_quantized(node: Node, quantized: bool) -> None:
    """Tell the partitioner whether a node computes in integers.

    Args:
        node: The node; every tracing keeps the mark.
        quantized: Whether it reads and gives what was quantized.
    """
    mark = {_QUANTIZED: {"quantized": quantized}}
    node.meta["custom"] = {**node.meta.get("custom", {}), **mark}


def is_argmax(node: object) -> bool:
    """Say whether a node, of ATen or of ExecuTorch's edge dialect, gives positions."""
    return isinstance(node, Node) and operator_name(node) == "aten.argmax.default"
