"""What XNNPACK executes in int8: its schemes and its operators, as data.

Read off ExecuTorch 1.4's partitioner (``backends/xnnpack/partition/config``), and checked by
lowering and running each row.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from attrs import evolve, frozen
from torch.fx import GraphModule

from qcore.annotation import (
    ConcatRule,
    ElementwiseRule,
    GemmRule,
    OperatorMatch,
    OperatorPattern,
    PassThroughRule,
    Rejection,
    SameRangeRule,
    SupportTable,
    convolution_groups,
)
from qcore.annotation.checks import (
    constants_fit_histogram,
    float_inputs,
    no_alpha,
    static_weight,
    weight_shape,
    whole_plane,
)
from qcore.graph import argument_of
from qcore.schemes import LayerScheme, QuantizationConfig, QuantizationScheme

__all__ = ["SCALAR_OPERATORS", "SCHEMES", "TABLE"]

aten = torch.ops.aten

# What XNNPACK takes of models that qcore.quantize_ has treated, by running each: of linear layers,
# 4-bit weights in blocks of a multiple of 32 with bfloat16 scales (a row is one block where scales
# are per channel; ``backends/xnnpack/operators/node_visitor.py``) and 8-bit weights per channel.
# Embeddings are not delegated; ExecuTorch's own kernels unpack 4 and 2 bits from whole bytes.
_EIGHT_BITS: Final = LayerScheme(8, 8, "per_channel", is_dynamic=True, layer="linear")
_FOUR_BITS: Final = evolve(
    _EIGHT_BITS, weight_bits=4, group_multiple=32, scale_dtype=torch.bfloat16
)
_LINEARS: Final = (evolve(_FOUR_BITS, granularity="per_group"), _FOUR_BITS, _EIGHT_BITS)
_EMBEDDINGS: Final = tuple(
    LayerScheme(bits, None, granularity, layer="embedding", group_multiple=multiple)
    for granularity in ("per_channel", "per_group")
    for bits, multiple in ((8, 1), (4, 2), (2, 4))
)

_PT2E: Final = tuple(
    QuantizationScheme(8, 8, granularity, is_dynamic, is_qat)
    for is_qat in (False, True)
    for is_dynamic in (False, True)
    for granularity in ("per_channel", "per_tensor")
)

SCHEMES: Final = (*_PT2E, *_LINEARS, *_EMBEDDINGS)

#: Operators whose scalar operands become tensors, because XNNPACK takes two tensors.
SCALAR_OPERATORS: Final[tuple[Any, ...]] = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
)

_RELUS: Final[tuple[Any, ...]] = (aten.relu.default,)
_CLAMPS: Final[tuple[Any, ...]] = (*_RELUS, aten.hardtanh.default)


def one_group(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject grouped transposed convolutions."""
    del config, model
    groups = convolution_groups(match.root)
    if groups == 1:
        return None
    return Rejection(
        f"xnnpack has no quantized transposed convolution with groups={groups}",
        "Use groups=1, or leave it in float.",
    )


def dynamic_is_plain_2d(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject dynamic convolutions other than 2d ones that are not depthwise."""
    del model
    assert config.input_activation is not None
    if not config.input_activation.is_dynamic:
        return None
    shape = weight_shape(match)
    if shape is None or len(shape) != 4:
        return Rejection(
            "xnnpack runs only 2d convolutions with dynamic activations",
            "Give it a static configuration.",
        )
    groups = convolution_groups(match.root)
    if groups > 1 and shape[1] == 1:
        return Rejection(
            "xnnpack runs no depthwise convolution with dynamic activations",
            "Give it a static configuration.",
        )
    return None


_CONVOLUTIONS: Final[tuple[Any, ...]] = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.convolution.default,
)

_GEMM_CHECKS: Final = (float_inputs, static_weight)
_ELEMENTWISE_CHECKS: Final = (float_inputs, no_alpha, constants_fit_histogram)

_GEMMS: Final = (
    OperatorPattern(
        "linear",
        (aten.linear.default,),
        GemmRule(),
        fuses=_CLAMPS,
        dynamic=True,
        checks=_GEMM_CHECKS,
    ),
    OperatorPattern(
        "conv",
        _CONVOLUTIONS,
        GemmRule(),
        fuses=_CLAMPS,
        folds_batch_norm=True,
        dynamic=True,
        checks=(*_GEMM_CHECKS, dynamic_is_plain_2d),
    ),
    OperatorPattern(
        "conv_transpose",
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input),
        GemmRule(),
        fuses=_CLAMPS,
        folds_batch_norm=True,
        dynamic=True,
        checks=(*_GEMM_CHECKS, one_group, dynamic_is_plain_2d),
    ),
)


def elu_of_one_scale(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject ELUs that multiply their input or output besides."""
    del config, model
    scales = (argument_of(match.root, name, 1) for name in ("scale", "input_scale"))
    if all(scale == 1 for scale in scales):
        return None
    return Rejection(
        "xnnpack's elu takes alpha alone, no scale",
        "Multiply before or after torch.nn.functional.elu(x, alpha) instead.",
    )


_ELEMENTWISE: Final = (
    OperatorPattern(
        "elu",
        (aten.elu.default,),
        ElementwiseRule(),
        checks=(float_inputs, elu_of_one_scale),
    ),
    OperatorPattern(
        "add",
        (aten.add.Tensor,),
        ElementwiseRule(),
        fuses=_RELUS,
        checks=_ELEMENTWISE_CHECKS,
    ),
    OperatorPattern(
        "sub",
        (aten.sub.Tensor,),
        ElementwiseRule(),
        checks=_ELEMENTWISE_CHECKS,
    ),
    OperatorPattern(
        "mul",
        (aten.mul.Tensor,),
        ElementwiseRule(),
        fuses=_RELUS,
        checks=_ELEMENTWISE_CHECKS,
    ),
)


_JOINING: Final = (
    OperatorPattern("cat", (aten.cat.default,), ConcatRule(), checks=(float_inputs,)),
    OperatorPattern(
        "adaptive_avg_pool2d",
        (aten.adaptive_avg_pool2d.default,),
        SameRangeRule(),
        checks=(float_inputs, whole_plane),
    ),
)

_PASS_THROUGH: Final = tuple(
    OperatorPattern(name, targets, PassThroughRule(), follows_input=True)
    for name, targets in (
        ("relu", _RELUS),
        ("hardtanh", (aten.hardtanh.default,)),
        ("clamp", (aten.clamp.default,)),
        ("max_pool2d", (aten.max_pool2d.default,)),
        (
            "permute",
            (aten.permute.default, aten.permute_copy.default, aten.t.default, aten.transpose.int),
        ),
        (
            "view",
            (
                aten.view.default,
                aten.view_copy.default,
                aten.reshape.default,
                aten.flatten.using_ints,
                aten.squeeze.default,
                aten.squeeze.dim,
                aten.squeeze.dims,
                aten.unsqueeze.default,
            ),
        ),
        ("copy", (aten.contiguous.default, aten.clone.default)),
    )
)


def mean_of_images(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject means over anything but the height and width of images."""
    del config, model
    node = match.root
    source, dims, *keep = node.args
    rank = source.meta["val"].dim()
    over = sorted(dim % rank for dim in dims or range(rank))
    if rank == 4 and over == [2, 3] and keep == [True] and "dtype" not in node.kwargs:
        return None
    return Rejection(
        "xnnpack averages over height and width of 4d tensors only",
        "Leave it in float: it then runs on a portable kernel.",
    )


_MEAN: Final = OperatorPattern(
    "mean", (aten.mean.dim,), PassThroughRule(), follows_input=True, checks=(mean_of_images,)
)

_PADS: Final = (aten.pad.default, aten.constant_pad_nd.default)


@frozen
class PadRule:
    """Padding before a convolution: it quantizes its input, so that the padding is in int8, too.

    Elsewhere it only moves data.
    """

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        feeds_convolutions = all(user.target in _CONVOLUTIONS for user in match.root.users)
        rule = SameRangeRule() if feeds_convolutions else PassThroughRule()
        return rule(match, config)


def constant_padding(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject padding that reflects, wraps or cuts off."""
    del config, model
    mode = match.root.args[2] if len(match.root.args) > 2 else "constant"
    if match.root.target is aten.pad.default and mode != "constant":
        return Rejection(
            f"xnnpack pads with constants only, not with mode={mode!r}",
            "Select it with set_global(...): it is then written as slices and cat.",
        )
    sizes: Any = match.root.args[1]
    if any(size < 0 for size in sizes):
        return Rejection("xnnpack does not cut off with negative padding", "Slice instead.")
    return None


def unit_step(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject slices that leave out elements."""
    del config, model
    step = match.root.args[4] if len(match.root.args) > 4 else 1
    if step == 1:
        return None
    return Rejection(
        f"xnnpack slices with step 1 only, not {step}", "Join slices of step 1 with cat."
    )


_MOVING: Final = (
    OperatorPattern(
        "pad", _PADS, PadRule(), follows_input=True, checks=(float_inputs, constant_padding)
    ),
    OperatorPattern(
        "slice",
        (aten.slice.Tensor, aten.slice_copy.Tensor),
        PassThroughRule(),
        follows_input=True,
        checks=(unit_step,),
    ),
)

TABLE: Final = SupportTable((*_MOVING, *_GEMMS, *_ELEMENTWISE, *_JOINING, _MEAN, *_PASS_THROUGH))
