"""Operators that XNNPACK takes under another form only.

Without these forms a graph breaks into several delegates: XNNPACK averages with kept dimensions
only, knows views but no squeezes, slices but no splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.annotation.forms import FORMS, Form, Written, always
from qcore.graph import argument_of, each_dimension, is_float_tensor, tensor_value

__all__ = ["XNNPACK_FORMS", "static_shape"]

aten = torch.ops.aten


def static_shape(sizes: Sequence[int | torch.SymInt]) -> list[int] | None:
    """Return sizes for ``reshape``.

    Args:
        sizes: The sizes of a tensor.

    Returns:
        The sizes with -1 for a dynamic one; None where more than one is.
    """
    shape = [size if isinstance(size, int) else -1 for size in sizes]
    return shape if shape.count(-1) <= 1 else None


def _view(model: GraphModule, node: Node) -> Written | None:
    shape = static_shape(node.meta["val"].shape)
    if shape is None or not is_float_tensor(node):
        return None
    return Written(aten.reshape.default, (node.args[0], shape))


def _kept_mean(model: GraphModule, node: Node) -> Written | None:
    source = tensor_value(node.args[0])
    dims, keep = argument_of(node, "dim", None), argument_of(node, "keepdim", False)
    if keep or node.kwargs or dims is None or not is_float_tensor(node) or source is None:
        return None
    shape = static_shape(node.meta["val"].shape)
    if source.dim() != 4 or sorted(dim % 4 for dim in dims) != [2, 3] or shape is None:
        return None
    return Written(lambda x, *_: aten.reshape.default(torch.mean(x, [2, 3], True), shape))


def _slices(model: GraphModule, node: Node) -> Written | None:
    if not is_float_tensor(node.args[0]):
        return None
    axis = argument_of(node, "dim", 0)
    sizes = [value.shape[axis] for value in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    bounds = list(pairwise(accumulate(sizes, initial=0)))
    return Written(lambda x, *_: tuple(aten.slice.Tensor(x, axis, *bound) for bound in bounds))


def _piece(model: GraphModule, node: Node) -> Written | None:
    """Write the choice of one position, or of several in a row, as a slice."""
    source, shape = tensor_value(node.args[0]), static_shape(node.meta["val"].shape)
    dim, first, *length = node.args[1:]
    size = None if source is None else source.shape[dim]
    if shape is None or not is_float_tensor(node) or not isinstance(size, int):
        return None
    if not isinstance(first, int) or not all(isinstance(count, int) for count in length):
        return None
    start: int = first % size if first < 0 else first
    end = start + (length[0] if length else 1)
    return Written(lambda x, *_: aten.slice.Tensor(x, dim, start, end).reshape(shape))


def _permuted(model: GraphModule, node: Node) -> Written | None:
    """Write what exchanges dimensions as ``permute``: the sizes of a probe tell them apart."""
    source: Any = tensor_value(node.args[0])
    target: Any = node.target
    if source is None or not is_float_tensor(node):
        return None
    probe = torch.empty(*range(1, source.dim() + 1), device="meta")
    order = [size - 1 for size in target(probe, *node.args[1:], **node.kwargs).shape]
    return Written(lambda x, *_, **__: x.permute(order))


def _concatenated(dims: Mapping[int, int]) -> Form:
    """Return the form of an operator that joins along a dimension given by the rank."""

    def form(model: GraphModule, node: Node) -> Written | None:
        tensors: Any = node.args[0]
        ranks = {value.dim() if (value := tensor_value(t)) is not None else 0 for t in tensors}
        dim = dims.get(min(max(ranks), 2)) if len(ranks) == 1 else None
        if dim is None or not is_float_tensor(node):
            return None
        return Written(lambda tensors: torch.cat(tensors, dim))

    return form


def _stacked(model: GraphModule, node: Node) -> Written | None:
    dim, value = argument_of(node, "dim", 0), tensor_value(node)
    if value is None or not is_float_tensor(node):
        return None
    dim %= value.dim()
    shape = static_shape([*value.shape[:dim], 1, *value.shape[dim + 1 :]])
    if shape is None:
        return None
    return Written(lambda tensors, *_: torch.cat([t.reshape(shape) for t in tensors], dim))


def _shuffled(model: GraphModule, node: Node) -> Written | None:
    source, factor = tensor_value(node.args[0]), node.args[1]
    shape = static_shape(node.meta["val"].shape)
    if source is None or shape is None or source.dim() != 4 or not is_float_tensor(node):
        return None
    batch, _, height, width = static_shape(source.shape) or shape

    def shuffled(x: torch.Tensor, *_: Any) -> torch.Tensor:
        parts = x.reshape([batch, shape[1], factor, factor, height, width])
        return parts.permute([0, 1, 4, 2, 5, 3]).reshape(shape)

    return Written(shuffled)


def _reflected(size: int, low: int, high: int) -> list[tuple[int, int]]:
    before = [(index, index + 1) for index in range(low, 0, -1)]
    after = [(index, index + 1) for index in range(size - 2, size - 2 - high, -1)]
    return [*before, (0, size), *after]


def _replicated(size: int, low: int, high: int) -> list[tuple[int, int]]:
    return [*[(0, 1)] * low, (0, size), *[(size - 1, size)] * high]


def _wrapped(size: int, low: int, high: int) -> list[tuple[int, int]]:
    pieces = [(size - low, size), (0, size), (0, high)]
    return [(first, end) for first, end in pieces if first < end]


# Padding with values of the input -> the slices, as first and end, that make up a dimension.
_PADDINGS: Final = {"reflect": _reflected, "replicate": _replicated, "circular": _wrapped}

# ExecuTorch's partitioner takes concatenations of at most so many tensors.
_MOST_JOINED: Final = 5


def _joined(model: GraphModule, node: Node) -> Written | None:
    """Write padding with values of the input as concatenations of its slices."""
    source, mode = tensor_value(node.args[0]), argument_of(node, "mode", "constant")
    sizes: Any = node.args[1]
    if source is None or mode not in _PADDINGS or min(sizes) < 0 or not is_float_tensor(node):
        return None
    axes = [source.dim() - 1 - index for index in range(len(sizes) // 2)]
    if not all(isinstance(source.shape[axis], int) for axis in axes):
        return None
    parts = {
        axis: _PADDINGS[mode](source.shape[axis], *sizes[2 * index : 2 * index + 2])
        for index, axis in enumerate(axes)
    }
    if any(len(bounds) > _MOST_JOINED for bounds in parts.values()):
        return None

    def padded(x: torch.Tensor, *_: Any) -> torch.Tensor:
        for axis, bounds in parts.items():
            whole, source = (0, x.shape[axis]), x
            pieces = [source if b == whole else aten.slice.Tensor(source, axis, *b) for b in bounds]
            x = torch.cat(pieces, axis) if len(pieces) > 1 else source
        return x

    return Written(padded)


def _pool_of_rows(model: GraphModule, node: Node) -> Written | None:
    source = tensor_value(node.args[0])
    shape = static_shape(source.shape) if source is not None else None
    pooled = static_shape(node.meta["val"].shape)
    if shape is None or pooled is None or len(shape) < 3:
        return None
    sizes = [each_dimension(argument_of(node, name, [])) for name in _POOLING]
    window, stride, padding, dilation = ([1, *size] if size else size for size in sizes)

    def pool(x: torch.Tensor, *_: Any) -> torch.Tensor:
        x = x.reshape([*shape[:2], 1, *shape[2:]])
        ceil = bool(argument_of(node, "ceil_mode", False))
        pad = [0, *padding[1:]] if padding else 0
        x = torch.max_pool2d(x, window, stride or window, pad, dilation or 1, ceil)
        return x.reshape(pooled)

    return Written(pool)


_EXCHANGES: Final = (
    aten.mT.default,
    aten.adjoint.default,
    aten.numpy_T.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
)

_POOLING: Final = ("kernel_size", "stride", "padding", "dilation")


def _no_dropout(model: GraphModule, node: Node) -> Written | None:
    training = argument_of(node, "train", True)
    return None if training else Written(lambda x, *_: x)


#: Operator -> its form: those of every backend, and XNNPACK's own.
# Alpha and scale of SELU: Klambauer et al., Self-Normalizing Neural Networks, 2017.
_SELU: Final = (1.6732632423543772, 1.0507009873554805)

XNNPACK_FORMS: Final[dict[Any, Form]] = {
    **FORMS,
    aten.squeeze.default: _view,
    aten.squeeze.dim: _view,
    aten.squeeze.dims: _view,
    aten.unsqueeze.default: _view,
    aten.flatten.using_ints: _view,
    aten.mean.dim: _kept_mean,
    aten.chunk.default: _slices,
    aten.split.Tensor: _slices,
    aten.split_with_sizes.default: _slices,
    aten.tensor_split.sections: _slices,
    aten.tensor_split.indices: _slices,
    aten.select.int: _piece,
    aten.narrow.default: _piece,
    **dict.fromkeys((aten.unflatten.int, aten.view_as.default, aten.ravel.default), _view),
    **dict.fromkeys(_EXCHANGES, _permuted),
    aten.stack.default: _stacked,
    **dict.fromkeys((aten.concat.default, aten.concatenate.default), always(torch.cat)),
    aten.hstack.default: _concatenated({1: 0, 2: 1}),
    aten.vstack.default: _concatenated({2: 0}),
    aten.pixel_shuffle.default: _shuffled,
    aten.pad.default: _joined,
    aten.max_pool1d.default: _pool_of_rows,
    aten.dropout.default: _no_dropout,
    aten.selu.default: always(lambda x: functional.elu(x, _SELU[0]) * _SELU[1]),
    aten.celu.default: always(lambda x, alpha=1.0: functional.elu(x * (1 / alpha)) * alpha),
}
