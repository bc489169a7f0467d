"""How far two outputs are apart, and how far they may be."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from qcore.schemes import QuantizationScheme

__all__ = ["compared_outputs", "expected_sqnr_db", "sqnr_db"]


def sqnr_db(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return the ratio of signal to quantization noise.

    Args:
        reference: The signal.
        output: The same with noise.

    Returns:
        The ratio in dB; 300 where there is no noise.
    """
    signal = reference.detach().double().pow(2).sum().clamp(min=1e-30)
    noise = (reference.detach().double() - output.detach().double()).pow(2).sum()
    return float(10 * torch.log10(signal / noise.clamp(min=1e-30 * float(signal))))


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
