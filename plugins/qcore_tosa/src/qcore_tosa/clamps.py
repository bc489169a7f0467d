"""Clamps behind layers, where the range of their result reaches below zero."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qcore.annotation import layer_of
from qcore_executorch.rewriting import Tensors, rewritten

__all__ = ["round_before_clamps"]

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

_CLAMPS: Final = (aten.relu.default, aten.hardtanh.default)


def round_before_clamps(program: ExportedProgram) -> ExportedProgram:
    """Round what a layer gives before its clamp, too, where the clamp stays an operator.

    ExecuTorch's passes drop a clamp where the smallest integer stands for 0. Where the range is
    shared with values below 0, it does not: the clamp is kept, and no range is found for the layer.
    Both roundings have one grid, so the values are the same.

    Args:
        program: The converted model, exported.

    Returns:
        The same program where there is no such clamp, else a new one.
    """
    return rewritten(program, _is_kept, _round_before)


def _is_kept(clamp: Node) -> bool:
    if clamp.target not in _CLAMPS or not all(map(_is_rounding, clamp.users)):
        return False
    if len({user.args[1:] for user in clamp.users}) != 1:
        return False
    layer: Any = clamp.args[0]
    reads = layer.all_input_nodes
    return layer_of(layer) is not None and len(layer.users) == 1 and all(map(_is_integer, reads))


def _is_integer(value: Node) -> bool:
    return "dequantize" in str(value.target)


def _is_rounding(user: Node) -> bool:
    if user.target is not decomposed.quantize_per_tensor.default:
        return False
    _, _, zero_point, smallest, *_ = user.args
    return bool(zero_point != smallest)


def _round_before(model: GraphModule, clamp: Node, tensors: Tensors) -> None:
    (layer, *_), rounding = clamp.args, next(iter(clamp.users))
    assert isinstance(layer, Node)
    grid = rounding.args[1:]
    with model.graph.inserting_before(clamp):
        integers = model.graph.call_function(rounding.target, (layer, *grid))
        values = model.graph.call_function(
            decomposed.dequantize_per_tensor.default, (integers, *grid)
        )
    clamp.replace_input_with(layer, values)
