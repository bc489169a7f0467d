"""Layers, pooling and resizing, written in the forms that TOSA has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.graph import each_dimension, insert_constant, tensor_attribute, tensor_value
from qcore_tosa.limits import is_whole, positions_are_used

__all__ = [
    "adaptive_max_form",
    "batch_norm_form",
    "max_pool_form",
    "nearest_form",
    "padding_form",
    "padding_of_sides",
    "transposed_form",
]

aten = torch.ops.aten

_CONVOLUTIONS: Final = (functional.conv1d, functional.conv2d, functional.conv3d)


def padding_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Pad by an operator of its own, where "same" means more on one side than on the other."""
    kernel = tensor_value(node.args[1])
    assert kernel is not None
    spatial = kernel.dim() - 2

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

    return padded


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


def nearest_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Pick rows and columns, where the factor is no whole number.

    ExecuTorch's lowering rounds such positions from the middle of a pixel, and torch does not
    (``backends/arm/_passes/rewrite_upsample.py``).
    """
    before = tensor_value(node.args[0])
    assert before is not None
    sizes = before.shape[2:]
    if not all(isinstance(size, int) for size in sizes) or is_whole(node):
        return None
    picked = []
    for axis, size in enumerate(sizes):
        shape = [1, 1, 1, 1]
        shape[2 + axis] = size
        grid = torch.arange(size, dtype=torch.float32).reshape(shape).expand(1, 1, *sizes)
        resized = aten.upsample_nearest2d.vec(grid, *node.args[1:])[0, 0]
        positions = resized.select(1 - axis, 0).to(torch.int32)
        picked.append(_constant(model, node, f"_{node.name}_positions_{axis}", positions))
    node.args, node.kwargs = (node.args[0], *picked), {}

    def pick(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return torch.index_select(torch.index_select(x, 2, rows), 3, columns)

    return pick


def batch_norm_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
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
    node.args = (
        node.args[0],
        _constant(model, node, f"_{node.name}_weight", weight),
        _constant(model, node, f"_{node.name}_bias", offset),
    )

    def convolved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        convolve: Any = _CONVOLUTIONS[weight.dim() - 3]
        is_flat = x.dim() == 2
        result: torch.Tensor = convolve(
            x.unsqueeze(-1) if is_flat else x, weight, bias, groups=len(bias)
        )
        return result.squeeze(-1) if is_flat else result

    return convolved


def transposed_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Write a transposed convolution in one dimension as one in two."""
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return None
    wide = tensor_attribute(model, weight).detach().unsqueeze(-2)
    source, _, *rest = node.args
    node.args = (source, _constant(model, node, f"_{node.name}_weight", wide), *rest)
    neutral = {"stride": 1, "padding": 0, "output_padding": 0, "groups": None, "dilation": 1}

    def convolved(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *options: Any
    ) -> torch.Tensor:
        given = {
            name: option if other is None else [other, *each_dimension(option)]
            for (name, other), option in zip(neutral.items(), options, strict=False)
        }
        result = functional.conv_transpose2d(x.unsqueeze(-2), weight, bias, **given)
        return result.squeeze(-2)

    return convolved


def adaptive_max_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Write adaptive max pooling with windows of one size as max pooling, without positions."""
    before = tensor_value(node.args[0])
    sizes: Any = node.args[1]
    if before is None or positions_are_used(node):
        return None
    inputs = before.shape[-len(sizes) :]
    if any(size % wanted for size, wanted in zip(inputs, sizes, strict=True)):
        return None
    if set(sizes) == {1}:
        # Ethos-U55 has no pooling with large strides.
        return lambda x, size: (torch.amax(x, list(range(-len(size), 0)), keepdim=True),)
    window = [size // wanted for size, wanted in zip(inputs, sizes, strict=True)]
    pool = functional.max_pool1d if len(sizes) == 1 else functional.max_pool2d
    return lambda x, size: (pool(x, window, window),)


def max_pool_form(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Write max pooling whose positions nothing reads as the one that gives none."""
    if positions_are_used(node):
        return None
    return lambda *args: (functional.max_pool2d(*args),)


def _constant(model: GraphModule, node: Node, name: str, value: torch.Tensor) -> Node:
    model.register_buffer(name, value)
    return insert_constant(model, node, name, node)
