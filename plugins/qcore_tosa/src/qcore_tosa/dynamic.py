"""Layers with dynamic activations, written so that ExecuTorch's lowering for Arm takes them.

That lowering knows constant scales only. Here a range is measured by float operators, the products
are those of integers with the scale 1, and the real scales are multiplied in afterwards, in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qcore.annotation import layer_of
from qcore.annotation.forms import padding_of_sides
from qcore.graph import each_dimension, overload_packet
from qcore_executorch.rewriting import Tensors, rewritten
from qcore_tosa.marks import mark_quantized

__all__ = ["decompose_dynamic"]

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

# The accumulator of integer products; TOSA refuses the smallest int32.
_ACCUMULATOR: Final = (-(2**31) + 1, 2**31 - 1, torch.int32)


def decompose_dynamic(program: ExportedProgram) -> ExportedProgram:
    """Write layers with dynamic activations as float operators around a product of integers.

    With activations ``s * (q - z)`` and weights ``t * w`` a layer without its bias is
    ``s * t * (q . w - z * sum(w))``. Only ``q . w`` needs to be computed in integers, and no scale
    or zero point of it is left open until the program runs.

    Args:
        program: The converted model, exported.

    Returns:
        The same program where no layer is dynamic, else a new one.
    """
    return rewritten(program, _is_dynamic, _decompose)


def _is_dynamic(node: Node) -> bool:
    layer = layer_of(node)
    if layer is None or layer.transposed:
        return False
    activation = _source(node, 0)
    if activation.target is not decomposed.dequantize_per_tensor.tensor:
        return False
    return _measure_of(activation).target in (decomposed.choose_qparams.tensor, _choose_qparams)


def _measure_of(activation: Node) -> Node:
    """Return what measures the range of a dequantized activation; layers may share it."""
    return _source(_source(activation, 1), 0)


def _decompose(model: GraphModule, layer: Node, tensors: Tensors) -> None:
    activation = _source(layer, 0)
    _measure_of(activation).target = _choose_qparams
    value, scale, zero_point, *kind = _source(activation, 0).args
    weight, scales, limits = _integer_weight(tensors, layer)
    facts = layer_of(layer)
    assert facts is not None
    spatial = facts.spatial
    shape = (-1, *(1,) * spatial)
    found = layer.normalized_arguments(model, normalize_to_only_use_kwargs=True)
    assert found is not None
    given: dict[str, Any] = found.kwargs
    padding: list[int] = []
    options: tuple[Any, ...] = ()
    if spatial:
        dilation = each_dimension(given["dilation"], spatial)
        padding = padding_of_sides(given["padding"], dilation, list(weight.shape[2:]))
        options = (None, given["stride"], [0] * spatial, dilation, given["groups"])

    def call(target: Callable[..., Any], *args: Any, quantized: bool = False) -> Node:
        node = model.graph.call_function(target, args)
        node.meta = dict(layer.meta)
        mark_quantized(node, quantized)
        return node

    def constant(name: str, tensor: torch.Tensor) -> Node:
        model.register_buffer(f"_{layer.name}_{name}", tensor)
        return model.graph.get_attr(f"_{layer.name}_{name}")

    with model.graph.inserting_before(layer):
        if any(padding):
            # In float, where the value of padding is known: zero.
            value = call(aten.pad.default, value, padding)
        integers = call(_to_integers, value, scale, zero_point, *kind)
        stored = constant("weight", weight)
        kernel = call(decomposed.dequantize_per_tensor.default, stored, 1.0, 0, *limits)
        # The overload that takes numbers, also where the layer says "same" or "valid".
        layer_type = overload_packet(layer).default
        product = call(layer_type, integers, kernel, *options, quantized=True)
        sums = weight.sum(tuple(range(1, weight.dim())), dtype=torch.float32)
        result = call(
            _to_floats,
            product,
            zero_point,
            scale,
            constant("sums", sums.reshape(shape)),
            constant("scales", scales.reshape(shape)),
        )
        if given["bias"] is not None:
            bias = call(aten.reshape.default, given["bias"], shape)
            result = call(aten.add.Tensor, result, bias)
    layer.replace_all_uses_with(result)


def _source(node: Node, position: int) -> Node:
    source = node.args[position]
    assert isinstance(source, Node)
    return source


def _integer_weight(
    tensors: Tensors, layer: Node
) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    """Return a layer's integers, its scale or one for each channel, and the limits and dtype."""
    dequantize = _source(layer, 1)
    integers, scales, _, *rest = (_computed(tensors, argument) for argument in dequantize.args)
    if dequantize.target is decomposed.dequantize_per_channel.default:
        _, *rest = rest  # The axis: output channels are the first dimension of all these layers.
    return integers, torch.as_tensor(scales, dtype=torch.float32), tuple(rest)


def _computed(tensors: Tensors, value: Any) -> Any:
    """Return what a node that depends on no input gives; other arguments stand for themselves."""
    if not isinstance(value, Node):
        return value
    if value.op == "placeholder":
        return tensors[value.name]
    assert callable(value.target)
    return value.target(*(_computed(tensors, argument) for argument in value.args))


def _choose_qparams(
    value: torch.Tensor, low: int, high: int, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what ``choose_qparams.tensor`` does, with a zero point in float."""
    del dtype
    zero = torch.zeros(())
    smallest, largest = torch.minimum(value.amin(), zero), torch.maximum(value.amax(), zero)
    scale = ((largest - smallest) / (high - low)).clamp(min=eps)
    return scale, (low - torch.round(smallest / scale)).clamp(low, high)


def _to_integers(
    value: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    rounded = (torch.round(value * (1.0 / scale)) + zero_point).clamp(low, high)
    return _exact(rounded, low, high, dtype)


def _to_floats(
    product: torch.Tensor,
    zero_point: torch.Tensor,
    scale: torch.Tensor,
    sums: torch.Tensor,
    scales: torch.Tensor,
) -> torch.Tensor:
    return (_exact(product, *_ACCUMULATOR) - zero_point * sums) * (scale * scales)


def _exact(value: torch.Tensor, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
    """Store integers that are held in float as integers, and read them back."""
    stored = decomposed.quantize_per_tensor.default(value, 1.0, 0, low, high, dtype)
    result: torch.Tensor = decomposed.dequantize_per_tensor.default(
        stored, 1.0, 0, low, high, dtype
    )
    return result
