"""The quantizer and its configurations under the names that ExecuTorch's users know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qcore.compat.torchao import (
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationConfig,
    QuantizationSpec,
)
from qcore.errors import UnsupportedSchemeError
from qcore.quantizer import Quantizer
from qcore.report import SourceReport
from qcore.source import torchao_quantize_
from qcore_vulkan.backend import VulkanBackend

__all__ = ["VulkanQuantizer", "get_symmetric_quantization_config", "quantize_"]


class VulkanQuantizer(Quantizer):
    """``qcore.get_quantizer("vulkan")`` as a class."""

    def __init__(self) -> None:
        super().__init__(VulkanBackend(), name="vulkan")


def quantize_(
    model: nn.Module, config: Any, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> SourceReport:
    """Quantize weights in place with the parameters of torchao's ``quantize_``.

    Args:
        model: The float model.
        config: One of torchao's configurations, for what Vulkan executes.
        filter_fn: From a module and its name to whether it is quantized; ``None`` selects every
            linear layer.

    Returns:
        What became of every layer.

    Raises:
        QcoreError: The backend does not execute it; nothing has changed then.
    """
    return torchao_quantize_(model, config, filter_fn, backend="vulkan")


@functools.lru_cache
def get_symmetric_quantization_config(
    is_dynamic: bool = False,
    weight_bits: int = 8,
    act_bits: int = 8,
    act_qmin: int | None = None,
    act_qmax: int | None = None,
    weight_qmin: int | None = None,
    weight_qmax: int | None = None,
) -> QuantizationConfig:
    """Build a configuration with weights symmetric per output channel.

    The parameters are those of ExecuTorch's function for Vulkan.

    Args:
        is_dynamic: Quantize activations at run time, too. The delegate drops this in the PT2E
            flow, so ``VulkanQuantizer`` refuses it; use ``qcore.quantize_(..., "8da4w")``.
        weight_bits: 8 or 4.
        act_bits: 8.
        act_qmin: Smallest quantized activation; by default the smallest of ``act_bits``.
        act_qmax: Largest quantized activation; by default the largest of ``act_bits``.
        weight_qmin: Smallest quantized weight; by default the smallest of ``weight_bits``.
        weight_qmax: Largest quantized weight; by default the largest of ``weight_bits``.

    Returns:
        A configuration; the same arguments give the same (cached) object.

    Raises:
        UnsupportedSchemeError: Vulkan has no such number of bits.
    """
    if weight_bits not in (4, 8) or act_bits != 8:
        raise UnsupportedSchemeError(
            f"vulkan has no weight_bits={weight_bits}, act_bits={act_bits}. "
            "Pass weight_bits=8 or 4, and act_bits=8."
        )
    activation = _spec(act_bits, act_qmin, act_qmax, dynamic=True) if is_dynamic else None
    weight = _spec(weight_bits, weight_qmin, weight_qmax, dynamic=False)
    return QuantizationConfig(activation, None, weight, None, False)


def _spec(bits: int, low: int | None, high: int | None, *, dynamic: bool) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-(2 ** (bits - 1)) if low is None else low,
        quant_max=2 ** (bits - 1) - 1 if high is None else high,
        qscheme=torch.per_tensor_affine if dynamic else torch.per_channel_symmetric,
        ch_axis=None if dynamic else 0,
        is_dynamic=dynamic,
        observer_or_fake_quant_ctr=PlaceholderObserver if dynamic else PerChannelMinMaxObserver,
    )
