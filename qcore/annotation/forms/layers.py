"""Layers and pooling, written as simpler ones."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.annotation.forms.applying import Form, Written
from qcore.annotation.layers import layer_of
from qcore.graph import each_dimension, positions_are_used, tensor_attribute, tensor_value

__all__ = ["LAYER_FORMS", "padding_of_sides"]

aten = torch.ops.aten

_CONVOLUTIONS: Final = (functional.conv1d, functional.conv2d, functional.conv3d)


def padding_of_sides(padding: Any, dilation: list[int], kernel: list[int]) -> list[int]:
    """Write out the padding of a convolution.

    Args:
        padding: Numbers, ``"same"`` or ``"valid"``.
        dilation: One number for each dimension.
        kernel: The sizes of the kernel.

    Returns:
        The padding of each side, the last dimension first, as ``torch.nn.functional.pad`` takes it.
    """
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        sizes = each_dimension(0 if padding == "valid" else padding, len(kernel))
        pairs = [(size, size) for size in sizes]
    return [side for pair in reversed(pairs) for side in pair]


def _padding(model: GraphModule, node: Node) -> Written:
    """Pad by an operator of its own, where "same" means more on one side than on the other."""
    layer = layer_of(node)
    assert layer is not None
    spatial = layer.spatial

    def padded(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: str = "valid",
        dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:
        steps = each_dimension(dilation, spatial)
        sides = padding_of_sides(padding, steps, list(weight.shape[2:]))
        even = sides[::2] == sides[1::2]
        if not even:
            x = functional.pad(x, sides)
        around = sides[::2][::-1] if even else [0] * spatial
        convolve: Any = _CONVOLUTIONS[spatial - 1]
        strides = each_dimension(stride, spatial)
        result: torch.Tensor = convolve(x, weight, bias, strides, around, steps, groups)
        return result

    return Written(padded)


def _batch_norm(model: GraphModule, node: Node) -> Written | None:
    """Write a batch norm that follows no layer as a convolution of each channel by itself.

    Its factors are then weights with a scale for each channel, and what follows can be fused.
    """
    x = tensor_value(node.args[0])
    statistics, (training, _, eps) = node.args[1:5], node.args[5:8]
    stored = all(s is None or (isinstance(s, Node) and s.op == "get_attr") for s in statistics)
    if training or not stored or None in statistics[2:] or x is None or x.dim() > 5:
        return None
    gamma, beta, mean, variance = (
        tensor_attribute(model, s).detach() if isinstance(s, Node) else None for s in statistics
    )
    assert mean is not None
    assert variance is not None
    assert isinstance(eps, float)
    factor = torch.rsqrt(variance + eps) * (1 if gamma is None else gamma)
    offset = (0 if beta is None else beta) - mean * factor
    weight = factor.reshape(-1, 1, *(1,) * max(x.dim() - 2, 1))

    def convolved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        convolve: Any = _CONVOLUTIONS[weight.dim() - 3]
        is_flat = x.dim() == 2
        result: torch.Tensor = convolve(
            x.unsqueeze(-1) if is_flat else x, weight, bias, groups=len(bias)
        )
        return result.squeeze(-1) if is_flat else result

    return Written(convolved, (node.args[0], weight, offset))


def _adaptive_max(model: GraphModule, node: Node) -> Written | None:
    """Write adaptive max pooling with windows of one size as max pooling, without positions."""
    before = tensor_value(node.args[0])
    sizes: Any = node.args[1]
    if before is None or positions_are_used(node):
        return None
    inputs = before.shape[-len(sizes) :]
    if any(size % wanted for size, wanted in zip(inputs, sizes, strict=True)):
        return None
    if set(sizes) == {1}:
        # Hardware may have no pooling with large strides.
        return Written(lambda x, size: (torch.amax(x, list(range(-len(size), 0)), keepdim=True),))
    window = [size // wanted for size, wanted in zip(inputs, sizes, strict=True)]
    pool = functional.max_pool1d if len(sizes) == 1 else functional.max_pool2d
    return Written(lambda x, size: (pool(x, window, window),))


def _max_pool(model: GraphModule, node: Node) -> Written | None:
    """Write max pooling whose positions nothing reads as the one that gives none."""
    if positions_are_used(node):
        return None
    return Written(lambda *args: (functional.max_pool2d(*args),))


LAYER_FORMS: Final[dict[Any, Form]] = {
    aten.conv1d.padding: _padding,
    aten.conv2d.padding: _padding,
    aten.conv3d.padding: _padding,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.adaptive_max_pool1d.default: _adaptive_max,
    aten.adaptive_max_pool2d.default: _adaptive_max,
}
