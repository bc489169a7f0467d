"""Operators of one kind: what to use in place of one that a backend does not quantize."""

from __future__ import annotations

from typing import Any, Final

from torch.fx import Node

from qcore.annotation.patterns import BATCH_NORMS, SupportTable

__all__ = ["MOVE_OUT", "advice_on"]

#: What to do about operators that a backend has nothing like.
MOVE_OUT: Final = (
    "Compute it outside of the model: before it, behind it, or between two parts of it."
)

# The usual ones first. One that stands in two kinds is a substitute in both.
_KINDS: Final = tuple(
    tuple(names.split())
    for names in (
        "relu relu6 hardtanh hardswish leaky_relu prelu elu selu celu gelu silu mish softplus",
        "hardsigmoid sigmoid hardtanh tanh softsign log_sigmoid",
        "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d lp_pool1d",
        "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d",
        "batch_norm layer_norm group_norm instance_norm rms_norm",
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
        "cat stack",
        "reshape view flatten unflatten squeeze unsqueeze",
        "mul div",
    )
)


def advice_on(node: Node, table: SupportTable) -> str:
    """Say what to try with an operator that a backend does not quantize.

    Args:
        node: The operator.
        table: What the backend quantizes.

    Returns:
        What the table says of it; else the quantized operators of its kind.
    """
    if node.target in table.advice:
        return table.advice[node.target]
    wanted, quantized = _name(node.target), _quantized(table)
    kinds = (kind for kind in _KINDS if wanted in kind)
    like = [name for kind in kinds for name in kind if name in quantized - {wanted}][:3]
    if not like:
        return MOVE_OUT
    return f"Use {' or '.join(like)} in its place, or compute it outside of the model."


def _quantized(table: SupportTable) -> set[str]:
    targets: list[Any] = [target for row in table for target in row.targets]
    if any(row.folds_batch_norm for row in table):
        targets += BATCH_NORMS
    return set(map(_name, targets))


def _name(target: Any) -> str:
    return str(getattr(target, "overloadpacket", target).__name__)
