"""How far two outputs are apart, and how far they may be."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from qcore.lowering.rounding import sqnr_db
from qcore.schemes import QuantizationScheme

__all__ = ["compared_outputs", "expected_sqnr_db", "sqnr_db"]


def expected_sqnr_db(scheme: QuantizationScheme) -> float:
    """Return how close to float a small model stays.

    A bit is worth 6.02 dB; a range that fits loses up to 18 dB to the crest of the values.

    Args:
        scheme: What it is quantized with.

    Returns:
        The least ratio in dB.
    """
    bits = min(scheme.weight_bits or 32, scheme.activation_bits or 32)
    return max(6.0 * bits - 18, 3.0)


def compared_outputs(expected: Any, actual: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pair the tensors of two outputs.

    Args:
        expected: What a model returns.
        actual: What it returns after a step that should keep its structure.

    Returns:
        The pairs, with equal shapes and types.
    """
    pairs = list(zip(tree_leaves(expected), tree_leaves(actual), strict=True))
    for before, after in pairs:
        assert before.dtype == after.dtype, (
            f"an output was {before.dtype} and became {after.dtype}: quantize and dequantize "
            "around an operator, and leave the types of outputs alone"
        )
        assert before.shape == after.shape, (
            f"an output had the shape {tuple(before.shape)} and has {tuple(after.shape)}"
        )
    return pairs
