"""Algorithms that change weights before observing, or biases and weights from statistics."""

from __future__ import annotations

from qcore.algorithms.bias_correction import BiasCorrection

__all__ = ["BiasCorrection"]
