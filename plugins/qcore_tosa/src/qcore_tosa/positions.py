"""Positions of the largest values, which TOSA gives as 32-bit integers."""

from __future__ import annotations

from torch.fx import Node

from qcore.graph import operator_name

__all__ = ["is_argmax"]


def is_argmax(node: object) -> bool:
    """Say whether a node, of ATen or of ExecuTorch's edge dialect, gives positions."""
    return isinstance(node, Node) and operator_name(node) == "aten.argmax.default"
