"""The builders of configurations: a format for weights, one for activations, and what observes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from attrs import evolve

from qcore.calibration.methods import DEFAULT
from qcore.compat.torchao import QuantizationConfig
from qcore.errors import UnsupportedSchemeError
from qcore.formats import INT8, INT8_WEIGHTS, INT16, SMALLEST_SCALE, UINT8, NumberFormat
from qcore.training import with_fake_quantization

__all__ = ["build_config", "get_symmetric_quantization_config", "with_weight_scales"]

_BY_TYPE = {known.dtype: known for known in (INT8, UINT8, INT16)}


@functools.lru_cache
def get_symmetric_quantization_config(
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
    *,
    act_dtype: torch.dtype = torch.int8,
    act_observer: Callable[..., Any] | None = None,
    eps: float = SMALLEST_SCALE,
) -> QuantizationConfig:
    """Build a configuration with symmetric integer weights and affine integer activations.

    For formats of another kind write ``qcore.QuantizationScheme(weight, activation).to_config()``.

    Args:
        is_per_channel: One weight scale per output channel instead of one per tensor.
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure activation ranges at run time; outputs then stay in float.
        act_qmin: Smallest quantized activation.
        act_qmax: Largest quantized activation.
        weight_qmin: Smallest quantized weight.
        weight_qmax: Largest quantized weight; below 127 for narrower weights stored as int8.
        act_dtype: Integer type of activations: ``torch.int8``, ``torch.uint8`` or ``torch.int16``.
            16-bit activations are symmetric, because integer kernels give them no zero point
            (LiteRT's 16x8 scheme): pass act_qmin=-32767, act_qmax=32767.
        act_observer: Observer class for static activations, which no calibration method replaces;
            takes ``eps`` as a keyword. ``None`` leaves it to the method that the quantizer was set
            to, ``histogram`` by default.
        eps: The smallest scale that observers may return.

    Returns:
        A configuration; the same arguments give the same (cached) object.

    Raises:
        UnsupportedSchemeError: A range is empty or does not fit its type.
    """
    _check_range("act", act_qmin, act_qmax, act_dtype)
    _check_range("weight", weight_qmin, weight_qmax, torch.int8)
    return build_config(
        evolve(INT8_WEIGHTS.with_range(weight_qmin, weight_qmax), smallest_scale=eps),
        evolve(_BY_TYPE[act_dtype].with_range(act_qmin, act_qmax), smallest_scale=eps),
        is_per_channel=is_per_channel,
        is_qat=is_qat,
        is_dynamic=is_dynamic,
        observer=act_observer,
    )


@functools.lru_cache
def build_config(
    weight: NumberFormat | None,
    activation: NumberFormat | None,
    *,
    is_per_channel: bool,
    is_qat: bool,
    is_dynamic: bool,
    is_per_operator: bool = False,
    observer: Callable[..., Any] | None = None,
) -> QuantizationConfig:
    """Build a configuration for two formats; ``None`` leaves weights or activations in float.

    ``observer`` is the user's own, for static activations; ``is_per_operator`` leaves to the
    backend how finely weights are scaled. The same arguments give the same (cached) object.
    """
    spec = activation and activation.activation_qspec(
        observer or DEFAULT.observer(activation),
        is_dynamic=is_dynamic,
        is_chosen=observer is None,
    )
    weights = weight and weight.weight_qspec(
        is_per_channel=is_per_channel, is_per_operator=is_per_operator
    )
    config = QuantizationConfig(spec, None if is_dynamic else spec, weights, None, False)
    return with_fake_quantization(config, running=True) if is_qat else config


@functools.lru_cache
def with_weight_scales(config: QuantizationConfig, is_per_channel: bool) -> QuantizationConfig:
    """Settle how finely weights are scaled, where a configuration leaves that to the backend."""
    weight = NumberFormat.of(config.weight)
    assert weight is not None
    spec = weight.weight_qspec(is_per_channel=is_per_channel)
    settled = dataclasses.replace(config, weight=spec, is_qat=False)
    return with_fake_quantization(settled, running=True) if config.is_qat else settled


def _check_range(which: str, qmin: int, qmax: int, dtype: torch.dtype) -> None:
    if dtype not in _BY_TYPE:
        known = ", ".join(map(str, _BY_TYPE))
        raise UnsupportedSchemeError(f"{which}_dtype={dtype} is none of {known}; pass one of them.")
    info = torch.iinfo(dtype)
    if not info.min <= qmin < qmax <= info.max:
        raise UnsupportedSchemeError(
            f"{which}_qmin={qmin}, {which}_qmax={qmax} is not a range of {dtype}: "
            f"pass {info.min} <= {which}_qmin < {which}_qmax <= {info.max}."
        )
