"""The builder of configurations with symmetric weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import torch

from qcore.calibration.histogram import HistogramObserver
from qcore.compat.torchao import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationConfig,
    QuantizationSpec,
)
from qcore.errors import UnsupportedSchemeError

__all__ = ["SMALLEST_SCALE", "get_symmetric_quantization_config"]

# The smallest scale an observer may return, unless a backend says otherwise. XNNPACK's and
# QNNPACK's requantization lose precision below it; the value is the one that ExecuTorch's
# quantizers use for both.
SMALLEST_SCALE: Final = 2**-12


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

    The positional parameters are those of ExecuTorch's function of the same name.

    Args:
        is_per_channel: One weight scale per output channel instead of one per tensor.
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure activation ranges at run time; outputs then stay in float.
        act_qmin: Smallest quantized activation.
        act_qmax: Largest quantized activation.
        weight_qmin: Smallest quantized weight.
        weight_qmax: Largest quantized weight; below 127 for narrower weights stored as int8.
        act_dtype: Integer type of activations: ``torch.int8``, ``torch.uint8`` or ``torch.int16``.
            16-bit activations are symmetric, because integer kernels give them no zero point (TOSA
            and LiteRT's 16x8 scheme alike): pass act_qmin=-32767, act_qmax=32767.
        act_observer: Observer class for static activations, in place of
            :class:`qcore.observers.HistogramObserver`; takes ``eps`` as a keyword.
        eps: The smallest scale that observers may return.

    Returns:
        A configuration; the same arguments give the same (cached) object.

    Raises:
        UnsupportedSchemeError: A range is empty or does not fit its type.
    """
    _check_range("act", act_qmin, act_qmax, act_dtype)
    _check_range("weight", weight_qmin, weight_qmax, torch.int8)
    activation = QuantizationSpec(
        dtype=act_dtype,
        quant_min=act_qmin,
        quant_max=act_qmax,
        qscheme=(
            torch.per_tensor_symmetric if act_dtype is torch.int16 else torch.per_tensor_affine
        ),
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=_activation_observer(is_qat, is_dynamic, act_observer, eps),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=weight_qmin,
        quant_max=weight_qmax,
        qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
        ch_axis=0,
        is_dynamic=False,
        observer_or_fake_quant_ctr=_weight_observer(is_qat, is_per_channel, eps),
    )
    return QuantizationConfig(activation, None if is_dynamic else activation, weight, None, is_qat)


def _check_range(which: str, qmin: int, qmax: int, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    if not info.min <= qmin < qmax <= info.max:
        raise UnsupportedSchemeError(
            f"{which}_qmin={qmin}, {which}_qmax={qmax} is not a range of {dtype}: "
            f"pass {info.min} <= {which}_qmin < {which}_qmax <= {info.max}."
        )


def _activation_observer(
    is_qat: bool, is_dynamic: bool, observer: Callable[..., Any] | None, eps: float
) -> Any:
    if is_qat and is_dynamic:
        running = MovingAverageMinMaxObserver.with_args(averaging_constant=1)
        return FakeQuantize.with_args(observer=running, eps=eps)
    if is_qat:
        return FusedMovingAvgObsFakeQuantize.with_args(eps=eps)
    if is_dynamic:
        return PlaceholderObserver.with_args(eps=eps)
    chosen: Any = observer or HistogramObserver
    return chosen.with_args(eps=eps)


def _weight_observer(is_qat: bool, is_per_channel: bool, eps: float) -> Any:
    if is_qat:
        observer = (
            MovingAveragePerChannelMinMaxObserver if is_per_channel else MovingAverageMinMaxObserver
        )
        return FusedMovingAvgObsFakeQuantize.with_args(observer=observer, eps=eps)
    observer = PerChannelMinMaxObserver if is_per_channel else MinMaxObserver
    return observer.with_args(eps=eps)
