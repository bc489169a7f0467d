"""Operators that TOSA's table lacks or ExecuTorch miscomputes, written as others."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.annotation.forms import FORMS, Form, Written, always
from qcore.graph import (
    argument_of,
    each_dimension,
    positions_are_used,
    tensor_attribute,
    tensor_value,
)
from qcore_executorch.kernels import PORTABLE_FORMS
from qcore_tosa.limits import is_whole

__all__ = ["TOSA_FORMS"]

aten = torch.ops.aten

_LARGEST_TRIANGLE: Final = 512


def _index(model: GraphModule, node: Node) -> Written | None:
    """Write indexing of one dimension behind others, which TOSA's gathering does not take."""
    indices: Any = node.args[1]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given == [0]:
        return None
    index = tensor_value(indices[given[0]])
    if index is None or index.dim() != 1 or index.dtype is torch.bool:
        return None
    return Written(lambda x, picked: torch.index_select(x, given[0], picked[given[0]]))


def _gather(model: GraphModule, node: Node) -> Written | None:
    """Write gathering along the last of two dimensions, by positions of 32 bits.

    ExecuTorch's lowering takes few others (``backends/arm/operator_support/gather_support.py``).
    """
    source, dim, index = node.args[:3]
    x, positions = tensor_value(source), tensor_value(index)
    if x is None or positions is None or x.dim() == 0:
        return None
    dim %= x.dim()
    if dim == 1 and x.dim() == 2 and positions.dtype is torch.int32 and len(x) == len(positions):
        return None

    def last(given: torch.Tensor) -> torch.Tensor:
        return given if dim == given.dim() - 1 else given.transpose(dim, -1)

    def rows(given: torch.Tensor) -> torch.Tensor:
        return last(given).reshape(-1, given.shape[dim])

    def gathered(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        kept = [slice(size) for size in index.shape]
        kept[dim] = slice(None)
        found = torch.gather(rows(x[tuple(kept)]), 1, rows(index))
        return last(found.reshape(last(index).shape))

    if index.op == "get_attr":
        index = tensor_attribute(model, index).to(torch.int32)
    return Written(gathered, (source, index))


def _argmax(model: GraphModule, node: Node) -> Written | None:
    """Write it in the form that TOSA has: along one dimension, which goes away."""
    dim, keepdim = argument_of(node, "dim", None), argument_of(node, "keepdim", False)
    if dim is not None and not keepdim:
        return None

    def positions(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if dim is not None:
            return torch.argmax(x, dim).unsqueeze(dim)
        found = torch.argmax(x.reshape(-1), 0)
        return found.reshape([1] * x.dim()) if keepdim else found

    return Written(positions)


def _nearest(model: GraphModule, node: Node) -> Written | None:
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
        picked.append(resized.select(1 - axis, 0).to(torch.int32))

    def pick(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return torch.index_select(torch.index_select(x, 2, rows), 3, columns)

    return Written(pick, (node.args[0], *picked))


def _transposed(model: GraphModule, node: Node) -> Written | None:
    """Write a transposed convolution as what TOSA has: two dimensions, and no groups."""
    weight, bias = node.args[1], argument_of(node, "bias", None)
    groups, wide = argument_of(node, "groups", 1), node.target is aten.conv_transpose1d.default
    constants = [given for given in (weight, bias) if given is not None]
    if not (wide or groups > 1) or not all(given.op == "get_attr" for given in constants):
        return None
    values = [tensor_attribute(model, given).detach() for given in constants]
    values[0] = values[0].unsqueeze(-2) if wide else values[0]
    neutral = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    options = {
        name: [*[other] * wide, *each_dimension(argument_of(node, name, other))]
        for name, other in neutral.items()
    }

    def convolved(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(-2) if wide else x
        sources = x.chunk(groups, -3) if groups > 1 else [x]
        weights, biases = parts[:groups], parts[groups:] or [None] * groups
        results = [
            functional.conv_transpose2d(*given, **options)
            for given in zip(sources, weights, biases, strict=True)
        ]
        result = torch.cat(results, -3) if groups > 1 else results[0]
        return result.squeeze(-2) if wide else result

    split = [part.contiguous() for value in values for part in value.chunk(groups)]
    return Written(convolved, (node.args[0], *split))


def _addmm(model: GraphModule, node: Node) -> Written:
    """Write it as a linear layer where its weight is constant, and as a product and a sum else."""
    bias, x, weight = node.args[:3]
    beta, alpha = argument_of(node, "beta", 1), argument_of(node, "alpha", 1)
    offset = tensor_value(bias)
    fits = offset is not None and offset.dim() == 1 and beta == alpha == 1
    if fits and isinstance(weight, Node) and weight.op == "get_attr":
        turned = tensor_attribute(model, weight).detach().t().contiguous()
        return Written(lambda bias, x, w: functional.linear(x, w, bias), (bias, x, turned))

    def added(bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        product = torch.mm(x, w)
        product = product if alpha == 1 else product * alpha
        return product + (bias if beta == 1 else bias * beta)

    return Written(added, (bias, x, weight))


def _running_sums(model: GraphModule, node: Node) -> Written | None:
    """Write running sums as a product with a triangle of ones.

    ExecuTorch's pass makes them a convolution whose weight has the type that its input had before
    it was quantized (``backends/arm/_passes/decompose_cumsum_pass.py``).
    """
    source, dim = node.args
    value = tensor_value(source)
    if value is None or not value.dim() or not value.is_floating_point() or "dtype" in node.kwargs:
        return None
    size = value.shape[dim]
    if not isinstance(size, int) or size > _LARGEST_TRIANGLE:
        return None

    def summed(x: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.transpose(dim, -1), ones).transpose(dim, -1)

    return Written(summed, (source, torch.ones(size, size).tril()))


def _selected(model: GraphModule, node: Node) -> Written | None:
    """Write a choice between a value and itself as the value: Ethos-U takes no other."""
    _, first, second = node.args
    shape = node.meta["val"].shape
    return Written(lambda _, x, __: x.expand(shape)) if first is second else None


def _threshold(x: torch.Tensor, threshold: float, value: float) -> torch.Tensor:
    return torch.where(x > threshold, x, torch.full_like(x, value))


def _windows(x: torch.Tensor, dim: int, size: int, step: int) -> torch.Tensor:
    dim %= x.dim()
    starts = range(0, x.shape[dim] - size + 1, step)
    windows = torch.stack([aten.slice.Tensor(x, dim, at, at + size) for at in starts], dim)
    order = [axis for axis in range(windows.dim()) if axis != dim + 1]
    return windows.permute([*order, dim + 1])


def _adaptive_max(model: GraphModule, node: Node) -> Written | None:
    """Write it as one pooling where its windows have one size, else window by window."""
    whole = FORMS[node.target](model, node)
    if whole is not None or positions_are_used(node):
        return whole
    return Written(PORTABLE_FORMS[node.target])


def _masked_fill(x: torch.Tensor, mask: torch.Tensor, value: float) -> torch.Tensor:
    # ExecuTorch's passes write it so as well, but after they have looked for values as large as
    # those of masks, which would have the whole range.
    return torch.where(mask, torch.full_like(x, value), x)


#: Operator -> its form: those of every backend, of ExecuTorch, and TOSA's own.
TOSA_FORMS: Final[dict[Any, Form]] = {
    **{target: always(function) for target, function in PORTABLE_FORMS.items()},
    **FORMS,
    aten.adaptive_max_pool2d.default: _adaptive_max,
    aten.addmm.default: _addmm,
    aten.gather.default: _gather,
    aten.argmax.default: _argmax,
    aten.argmin.default: always(lambda x, *args, **kw: torch.argmax(-x, *args, **kw)),
    aten.cumsum.default: _running_sums,
    aten.index.Tensor: _index,
    aten.masked_fill.Scalar: always(_masked_fill),
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.threshold.default: always(_threshold),
    aten.unfold.default: always(_windows),
    aten.upsample_nearest2d.vec: _nearest,
    aten.where.self: _selected,
}
