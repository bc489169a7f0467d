"""Facts about modules whose weights are quantized, or may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn
from torch.nn.utils import parametrize

from qcore.compat.torchao import (
    Int8DynActInt4WeightLinear,
    IntxUnpackedToInt8Tensor,
    TorchAOBaseTensor,
    UnwrapTensorSubclass,
)
from qcore.formats import INT8_WEIGHTS
from qcore.grammar import Granularity
from qcore.schemes import Layer, LayerScheme

__all__ = [
    "QuantizedLayer",
    "has_weight",
    "held",
    "is_quantized",
    "layer_scheme",
    "model_bytes",
    "quantized_layers",
    "stored_bytes",
    "stored_weight",
]


@frozen
class QuantizedLayer:
    """A layer that source quantization has treated, with its scheme as a backend declares it.

    ``group_size`` is how many weights of a row share a scale, all of them with per-channel scales;
    ``shape`` are rows and columns of its weight.
    """

    name: str
    scheme: LayerScheme
    group_size: int
    shape: tuple[int, int]


def layer_scheme(
    layer: Layer, bits: int, granularity: Granularity, *, is_dynamic: bool, symmetric: bool = True
) -> LayerScheme:
    """Return a scheme of source quantization as a backend declares it.

    With ``is_dynamic`` activations are quantized to int8 at run time; else they stay in
    float.
    """
    weight = evolve(INT8_WEIGHTS.narrowed(bits), symmetric=symmetric)
    return LayerScheme(weight, 8 if is_dynamic else None, granularity, is_dynamic, layer=layer)


def stored_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight that a module holds; ``None`` for one that it computes, or has not."""
    weight = module._parameters.get("weight")
    return module._buffers.get("weight") if weight is None else weight


def has_weight(module: nn.Module) -> bool:
    """Say whether a module has a weight of two dimensions or more; a bias or a norm has one."""
    if isinstance(module, (nn.Linear, nn.Embedding, Int8DynActInt4WeightLinear)):
        return True
    weight = stored_weight(module)
    return weight is not None and weight.dim() >= 2


def _unwraps(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    applied: Any = module.parametrizations
    return any(isinstance(step, UnwrapTensorSubclass) for step in applied["weight"])


def is_quantized(module: nn.Module) -> bool:
    """Say whether torchao has quantized a module's weight, in any of its ways."""
    if isinstance(module, Int8DynActInt4WeightLinear) or _unwraps(module):
        return True
    return isinstance(stored_weight(module), TorchAOBaseTensor)


def quantized_layers(model: nn.Module) -> Iterator[QuantizedLayer]:
    """Read the schemes off the layers that ``quantize_``, qcore's or torchao's, has treated."""
    for name, module in model.named_modules():
        if isinstance(module, Int8DynActInt4WeightLinear):
            scheme = layer_scheme("linear", 4, "per_group", is_dynamic=True)
            shape = (module.out_features, module.in_features)
            yield QuantizedLayer(name, scheme, int(module.groupsize), shape)
            continue
        weight = stored_weight(module)
        if not isinstance(weight, IntxUnpackedToInt8Tensor) or weight.dim() != 2:
            continue
        group, inputs = int(weight.block_size[-1]), int(weight.shape[-1])
        yield QuantizedLayer(
            name,
            layer_scheme(
                "embedding" if isinstance(module, nn.Embedding) else "linear",
                _bits(weight),
                "per_channel" if group == inputs else "per_group",
                is_dynamic=weight.activation_quantization is not None,
                symmetric=not bool(weight.zero_point.any()),
            ),
            group,
            (int(weight.shape[0]), inputs),
        )


def held(module: nn.Module) -> QuantizedLayer | None:
    """Return the format of a linear layer that ``quantize_`` takes as it is; ``None`` for others.

    Its weight alone is quantized, and without zero points.
    """
    for layer in quantized_layers(module) if isinstance(module, nn.Linear) else ():
        weight = layer.scheme.weight
        if layer.scheme.activation is None and weight is not None and weight.symmetric:
            return layer
    return None


def _bits(weight: Any) -> int:
    return int(str(weight.target_dtype).removeprefix("torch.int"))


def stored_bytes(tensor: torch.Tensor) -> int:
    """Return the size of a tensor on a device in bytes.

    Of a quantized weight these are its bits, packed, its scales, and its zero points unless all are
    0.
    """
    if not isinstance(tensor, IntxUnpackedToInt8Tensor):
        return int(tensor.numel() * tensor.element_size())
    size = (tensor.numel() * _bits(tensor) + 7) // 8 + stored_bytes(tensor.scale)
    return int(size) + (stored_bytes(tensor.zero_point) if tensor.zero_point.any() else 0)


def model_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters and buffers in bytes, shared ones once."""
    found: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.qdata if isinstance(tensor, IntxUnpackedToInt8Tensor) else tensor
        found[data.data_ptr() or id(data)] = stored_bytes(tensor)
    return sum(found.values())
