"""What ExecuTorch's passes and partitioners for Arm read in the metadata of nodes."""

from __future__ import annotations

from torch.fx import Node

from qcore_tosa.compat.executorch import INFO, KEPT

__all__ = ["is_kept", "keep", "mark_quantized", "unmark"]


def keep(node: Node, kept: bool = True) -> None:
    """Tell the passes whether to leave a node alone."""
    node.meta[_kept()] = kept


def is_kept(node: Node) -> bool:
    """Say whether the passes are to leave a node alone."""
    return bool(node.meta.get(_kept()))


def unmark(node: Node) -> None:
    """Take back what the passes were told."""
    node.meta.pop(_kept(), None)


def _kept() -> str:
    return str(KEPT.checked().DISALLOW_TFA_META_KEY)


def mark_quantized(node: Node, quantized: bool) -> None:
    """Tell the partitioner whether a node computes in integers.

    Args:
        node: The node; every tracing keeps the mark.
        quantized: Whether it reads and gives what was quantized.
    """
    info = INFO.checked()
    mark = {info.CUSTOM_META_KEY: {"quantized": quantized}}
    node.meta["custom"] = {**node.meta.get("custom", {}), **mark}
