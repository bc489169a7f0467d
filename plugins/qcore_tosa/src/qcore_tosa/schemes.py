"""The schemes of the Arm targets, and configurations under ExecuTorch's names."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from attrs import evolve

import qcore
from qcore import formats
from qcore.schemes import IoScheme, QuantizationConfig, QuantizationScheme

__all__ = [
    "DYNAMIC",
    "INT8",
    "INT16",
    "get_symmetric_a8w4_quantization_config",
    "get_symmetric_a16w8_quantization_config",
    "get_symmetric_quantization_config",
    "get_uint8_io_quantization_config",
]

# The smallest scales that ExecuTorch's Arm quantizer allows, for int8 and for int16 activations.
_EPS_INT8: Final = 2**-16
_EPS_INT16: Final = 2**-12

_IO: Final = tuple(IoScheme(None, kind, "per_tensor") for kind in (formats.INT8, formats.UINT8))


def _schemes(
    activation: formats.NumberFormat, eps: float, is_dynamic: bool = False
) -> tuple[QuantizationScheme, ...]:
    weight = evolve(formats.INT8_WEIGHTS, smallest_scale=eps)
    activation = evolve(activation, smallest_scale=eps)
    return tuple(
        QuantizationScheme(weight, activation, granularity, is_dynamic, is_qat)
        for is_qat in (False, True)
        for granularity in ("per_channel", "per_tensor")
    )


#: What every target executes.
INT8: Final = (*_schemes(formats.INT8, _EPS_INT8), *_IO)

#: What targets that also compute in float execute, too.
DYNAMIC: Final = _schemes(formats.INT8, _EPS_INT8, is_dynamic=True)

#: What targets with TOSA's extension ``int16`` execute, too.
INT16: Final = _schemes(formats.INT16, _EPS_INT16)


@functools.lru_cache
def get_symmetric_quantization_config(
    is_per_channel: bool = True,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
    eps: float = _EPS_INT8,
) -> QuantizationConfig:
    """Build a configuration with symmetric int8 weights and affine int8 activations.

    The parameters are those of ExecuTorch's function for Arm targets.

    Args:
        is_per_channel: One weight scale per output channel instead of one per tensor.
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure activation ranges at run time; outputs then stay in float.
        act_qmin: Smallest quantized activation.
        act_qmax: Largest quantized activation.
        weight_qmin: Smallest quantized weight.
        weight_qmax: Largest quantized weight.
        eps: The smallest scale that observers may return.

    Returns:
        A configuration; the same arguments give the same (cached) object.

    Raises:
        UnsupportedSchemeError: A range is empty or does not fit int8.
    """
    return qcore.get_symmetric_quantization_config(
        is_per_channel, is_qat, is_dynamic, act_qmin, act_qmax, weight_qmin, weight_qmax, eps=eps
    )


def get_symmetric_a8w4_quantization_config(
    is_per_channel: bool = True, is_qat: bool = True, is_dynamic: bool = False
) -> QuantizationConfig:
    """Build a configuration with symmetric 4-bit weights, stored as int8, and int8 activations.

    The parameters are those of ExecuTorch's function; this one trains unless told otherwise.

    Args:
        is_per_channel: One weight scale per output channel instead of one per tensor.
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure activation ranges at run time; outputs then stay in float.

    Returns:
        A configuration; the same arguments give the same (cached) object.
    """
    return get_symmetric_quantization_config(
        is_per_channel, is_qat, is_dynamic, weight_qmin=-7, weight_qmax=7
    )


@functools.lru_cache
def get_symmetric_a16w8_quantization_config(
    is_per_channel: bool = True,
    is_qat: bool = False,
    is_dynamic: bool = False,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
    epsilon: float = _EPS_INT16,
) -> QuantizationConfig:
    """Build a configuration with symmetric int8 weights and symmetric int16 activations.

    The parameters are those of ExecuTorch's function.

    Args:
        is_per_channel: One weight scale per output channel instead of one per tensor.
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure activation ranges at run time; outputs then stay in float.
        weight_qmin: Smallest quantized weight.
        weight_qmax: Largest quantized weight.
        epsilon: The smallest scale that observers may return.

    Returns:
        A configuration; the same arguments give the same (cached) object.

    Raises:
        UnsupportedSchemeError: The range is empty or does not fit int8.
    """
    limit = torch.iinfo(torch.int16).max
    return qcore.get_symmetric_quantization_config(
        is_per_channel,
        is_qat,
        is_dynamic,
        act_qmin=-limit,
        act_qmax=limit,
        weight_qmin=weight_qmin,
        weight_qmax=weight_qmax,
        act_dtype=torch.int16,
        eps=epsilon,
    )


@functools.lru_cache
def get_uint8_io_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, eps: float = _EPS_INT8
) -> QuantizationConfig:
    """Build a configuration for ``set_io`` alone: uint8 inputs and outputs.

    Args:
        is_qat: Fake quantization for quantization-aware training instead of observers.
        is_dynamic: Measure ranges at run time.
        eps: The smallest scale that observers may return.

    Returns:
        A configuration without weights; the same arguments give the same (cached) object.
    """
    limits = torch.iinfo(torch.uint8)
    config = qcore.get_symmetric_quantization_config(
        is_qat=is_qat,
        is_dynamic=is_dynamic,
        act_qmin=limits.min,
        act_qmax=limits.max,
        act_dtype=torch.uint8,
        eps=eps,
    )
    activation: Any = config.input_activation
    return QuantizationConfig(activation, activation, None, None, is_qat)
