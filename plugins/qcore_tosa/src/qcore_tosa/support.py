"""What the TOSA integer profile executes: the operators, as data.

The rows are the operators that ExecuTorch 1.4's Arm quantizer knows
(``backends/arm/quantizer/quantizer_support.py``), and pooling in one dimension. Composite ones
stand here, too: whether they are decomposed before annotation depends on whether they would be
quantized.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch

from qcore.annotation import (
    AnnotationRule,
    ElementwiseRule,
    GemmRule,
    OperatorPattern,
    SameRangeInputsRule,
    SameRangeRule,
    SupportTable,
)
from qcore.annotation.checks import (
    constants_fit_histogram,
    float_inputs,
)
from qcore_tosa.checks import (
    constant_fits,
    constant_weight_if_dynamic,
    float_edges,
    is_fusable_clamp,
    one_axis_of_channels,
    undilated,
)
from qcore_tosa.rules import CastRule, FixedRangeRule

__all__ = ["ARITHMETIC", "TABLE"]

aten = torch.ops.aten


def _rows(rule: AnnotationRule | None, targets: str, **options: Any) -> tuple[OperatorPattern, ...]:
    """Make a row of each name: ``mean mean.dim`` are one row, ``relu, tanh`` two."""
    return tuple(
        OperatorPattern(names.split()[0].split(".")[0], tuple(_operators(names)), rule, **options)
        for names in targets.split(",")
    )


def _operators(names: str) -> list[Any]:
    """Look the operators up; ``default`` is the overload of a name without one."""
    found = []
    for name in names.split():
        packet, _, overload = name.partition(".")
        found.append(getattr(getattr(aten, packet), overload or "default"))
    return found


_RELUS: Final = tuple(_operators("relu hardtanh"))

_GEMMS: Final = (
    *_rows(
        GemmRule(integer_bias=True),
        "linear, conv1d conv1d.padding, conv2d conv2d.padding, conv3d conv3d.padding",
        fuses=_RELUS,
        may_fuse=is_fusable_clamp,
        folds_batch_norm=True,
        dynamic=True,
        checks=(float_inputs, constant_weight_if_dynamic),
    ),
    *_rows(
        GemmRule(integer_bias=True),
        "conv_transpose2d.input",
        fuses=_RELUS,
        may_fuse=is_fusable_clamp,
        folds_batch_norm=True,
        checks=(float_inputs, one_axis_of_channels, undilated),
    ),
)

#: Operators on two tensors, whose scalar operands become tensors before annotation.
ARITHMETIC: Final = _rows(
    ElementwiseRule(),
    "add.Tensor, sub.Tensor, mul.Tensor, matmul, mm, bmm",
    checks=(float_inputs, constants_fit_histogram),
)

_OWN_RANGES: Final = _rows(
    ElementwiseRule(),
    """abs, ceil, erf, erfinv, exp, expm1, elu, selu, celu, floor, round, log, reciprocal, rsqrt,
    sigmoid, cos, sin, tanh, sum.dim_IntList sum, hardsigmoid, hardswish, leaky_relu, full_like,
    zeros_like, pow.Tensor_Scalar, gelu, silu, sinh, atan, log1p, log10, acosh, sign, asinh, cosh,
    cumsum, remainder.Scalar remainder.Tensor, tan, _softmax softmax.int, div.Tensor
    div.Tensor_mode, floor_divide, logit, glu, addmm, layer_norm, group_norm, sqrt, var.dim
    var.correction, linalg_vector_norm, log_softmax.int, embedding, cosine_similarity, neg,
    scaled_dot_product_attention, lstm.input, gru.input, rnn_tanh.input rnn_relu.input, einsum,
    moveaxis.int moveaxis.intlist, movedim.int movedim.intlist, argmax""",
    checks=(float_edges, constants_fit_histogram),
)

_CONSTANTS: Final = _rows(
    ElementwiseRule(),
    "full, zeros, ones, fill.Scalar, scalar_tensor, arange.start_step arange, linspace, eye",
    checks=(float_edges, constant_fits),
)

_SAME_RANGE: Final = _rows(
    SameRangeRule(requantizes=True),
    """adaptive_avg_pool1d, adaptive_avg_pool2d, upsample_bilinear2d.vec, upsample_nearest2d.vec,
    avg_pool1d, avg_pool2d, max_pool1d, max_pool2d, mean mean.dim""",
    checks=(float_edges,),
)

_COMPARISONS: Final = _rows(
    SameRangeInputsRule(),
    """lt.Tensor lt.Scalar, le.Tensor le.Scalar, gt.Tensor gt.Scalar, ge.Tensor ge.Scalar,
    eq.Tensor eq.Scalar, ne.Tensor ne.Scalar""",
    checks=(float_edges, constants_fit_histogram),
)

# Intervals of ExecuTorch's Arm quantizer; atanh is infinite at 1.
_INTERVALS: Final = (
    *_rows(FixedRangeRule(1.0), "asin, acos", checks=(float_edges,)),
    *_rows(FixedRangeRule(0.999), "atanh", checks=(float_edges,)),
)

_CASTS: Final = _rows(CastRule(), "to.dtype", checks=(float_edges,))

_GETITEM: Final[tuple[Any, ...]] = (operator.getitem,)

_MOVING: Final = (
    *_rows(
        None,
        """clone, lift_fresh_copy, detach, alias, alias_copy, copy, detach_copy, unfold_copy,
        unbind.int, minimum, maximum, min.dim, max.dim, amin, amax, permute permute_copy,
        transpose.int transpose_copy.int, t t_copy, repeat, repeat_interleave.self_int,
        expand expand_copy, select.int select_copy.int, slice.Tensor slice_copy.Tensor,
        split.Tensor split_with_sizes split_copy.Tensor, tile, flip, index_select, index_put,
        index_copy, contiguous, as_strided_copy, pixel_shuffle,
        pixel_unshuffle, cat concatenate, stack, dropout, chunk, index.Tensor, gather,
        squeeze squeeze.dim squeeze.dims squeeze_copy squeeze_copy.dim,
        unsqueeze unsqueeze_copy, reshape view view_as view_copy _unsafe_view unflatten.int
        flatten.using_ints, pad constant_pad_nd, clamp clamp.Tensor, hardtanh,
        relu, where.self""",
        shares_range=True,
    ),
    OperatorPattern("getitem", _GETITEM, None, shares_range=True),
)

TABLE: Final = SupportTable(
    (
        *_GEMMS,
        *ARITHMETIC,
        *_OWN_RANGES,
        *_CONSTANTS,
        *_SAME_RANGE,
        *_COMPARISONS,
        *_INTERVALS,
        *_CASTS,
        *_MOVING,
    )
)
