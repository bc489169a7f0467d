"""What the operators of a Vulkan graph compute, where ExecuTorch says so and where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from qcore.errors import LoweringError
from qcore_executorch import import_executorch

__all__ = ["reference_of", "unpack_even_high", "unpack_even_low"]

_LIBRARY: Final = "executorch.backends.vulkan.custom_ops_lib"


def unpack_even_low(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Unpack 4-bit weights of ``linear_q4gsw``: even columns in the low half of a byte.

    Args:
        packed: ``[rows, padded columns / 2]`` uint8, values with 8 added.
        columns: How many columns the weight has; the rest is padding.

    Returns:
        ``[rows, columns]`` int8, from -8 to 7.
    """
    halves = torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(1)
    return halves.to(torch.int8)[:, :columns] - 8


def unpack_even_high(packed: torch.Tensor) -> torch.Tensor:
    """Unpack 4-bit weights of ``linear_qcs4w``: even columns in the high half of a byte.

    Args:
        packed: ``[rows, columns / 2]`` uint8, values with 8 added.

    Returns:
        ``[rows, columns]`` int8, from -8 to 7.
    """
    halves = torch.stack((packed >> 4, packed & 0x0F), dim=-1).flatten(1)
    return halves.to(torch.int8) - 8


def _dynamic_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    weights: torch.Tensor,
    weight_sums: torch.Tensor,
    *rest: Any,
) -> torch.Tensor:
    # ExecuTorch's reference leaves the activation in float; the shader rounds it to int8 rows.
    del weight_sums
    rows = (*x.shape[:-1], 1)
    scale, zero_point = scale.reshape(rows), zero_point.reshape(rows).to(x.dtype)
    rounded = (torch.round(x * (1.0 / scale)) + zero_point).clamp(-128, 127)
    rounded = (rounded - zero_point) * scale
    return torch.ops.et_vk.linear_q4gsw.default(rounded, weights, *rest)


def _row_linear(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    # ExecuTorch's reference does not take off the 8 that its packing adds.
    weight = unpack_even_high(packed) * scales.reshape(-1, 1)
    return torch.nn.functional.linear(x, weight)


def _int8_linear(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    # aten's own kernel takes two dimensions, and rounds differently from one CPU to the next.
    return torch.nn.functional.linear(x, weight.to(x.dtype) * scales.reshape(-1, 1))


def _row_parameters(
    x: torch.Tensor, mapping: str, block: Any, dtype: Any, low: Any, high: Any, *rest: Any
) -> Any:
    # A Vulkan graph stores no types: int8 activations, which is all that the delegate fuses.
    del dtype, rest
    choose = torch.ops.torchao.choose_qparams_affine.default
    return choose(x, mapping, block, torch.int8, low, high, None, None, torch.int8)


def _clamped_convolution(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    # A bound that is the largest double is none in float32, where torch refuses to convert it.
    *arguments, low, high = rest
    limits = torch.finfo(x.dtype)
    bounds = (None if b is None else min(max(b, limits.min), limits.max) for b in (low, high))
    return torch.clamp(torch.convolution(x, *arguments), *bounds)


_OURS: Final[dict[str, Callable[..., Any]]] = {
    "et_vk.prepack.default": lambda x: x,
    "torchao.choose_qparams_affine.default": _row_parameters,
    "et_vk.linear_dq8ca_q4gsw.default": _dynamic_linear,
    "et_vk.linear_qcs4w.default": _row_linear,
    "et_vk.conv_with_clamp.default": _clamped_convolution,
    "aten._weight_int8pack_mm.default": _int8_linear,
}


def reference_of(name: str) -> Callable[..., Any]:
    """Return what computes an operator of a Vulkan graph.

    Args:
        name: The operator, such as ``et_vk.linear_q4gsw.default``.

    Returns:
        ExecuTorch's reference, or ours where that one leaves out part of the computation.

    Raises:
        LoweringError: There is none.
    """
    if name in _OURS:
        return _OURS[name]
    import_executorch(_LIBRARY)
    namespace, operator, overload = name.split(".")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    except AttributeError as error:
        raise LoweringError(
            f"The Vulkan graph calls {name}, for which there is no reference implementation."
        ) from error
    return _by_schema(found)


def _by_schema(operator: Any) -> Callable[..., Any]:
    """Call an operator with all of its arguments in the order of its schema."""
    declared = operator._schema.arguments

    def call(*arguments: Any) -> Any:
        pairs = list(zip(declared, arguments, strict=True))
        positional = [value for argument, value in pairs if not argument.kwarg_only]
        return operator(*positional, **{a.name: v for a, v in pairs if a.kwarg_only})

    return call
