"""Reasons why a match cannot be quantized for TOSA, beside those of the core's toolkit."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.annotation import OperatorMatch, Rejection, convolution_groups, without_float32
from qcore.annotation.checks import fits_histogram, static_weight
from qcore.graph import argument_of, each_dimension
from qcore.schemes import PER_CHANNEL, QuantizationConfig

__all__ = [
    "constant_fits",
    "constant_weight_if_dynamic",
    "float_edges",
    "is_fusable_clamp",
    "one_axis_of_channels",
    "undilated",
]

aten = torch.ops.aten

_LIMITED: Final = (float("inf"), torch.finfo(torch.float32).max)


def float_edges(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject operators that neither read nor give float32."""
    del config, model
    return without_float32(match.root)


def constant_fits(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject constants that are too large for a histogram, and are not limited before they are.

    ExecuTorch's passes put smaller ones in the place of the largest floats, which fill masks.
    """
    del config, model
    numbers = [value for value in match.root.args if isinstance(value, (int, float))]
    rejections = (fits_histogram(value) for value in numbers if abs(value) not in _LIMITED)
    return next(filter(None, rejections), None)


def constant_weight_if_dynamic(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject dynamic layers whose weight is computed at run time, too."""
    activation = config.input_activation
    dynamic = activation is not None and activation.is_dynamic
    return static_weight(match, config, model) if dynamic else None


def one_axis_of_channels(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject per-channel scales for grouped transposed convolutions.

    Their output channels lie along two dimensions of the weight, and a scale belongs to one;
    ExecuTorch's partitioner leaves those out whose channels do not (depthwise ones), too.
    """
    del model
    groups = convolution_groups(match.root)
    per_channel = config.weight is not None and config.weight.qscheme in PER_CHANNEL
    if not per_channel or groups == 1:
        return None
    return Rejection(
        f"a transposed convolution with groups={groups} takes one scale for its whole weight",
        "Give it a per-tensor configuration, such as '8a8w per-tensor'.",
    )


def undilated(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject dilated transposed convolutions."""
    del config, model
    dilation = argument_of(match.root, "dilation", 1)
    if set(each_dimension(dilation)) == {1}:
        return None
    return Rejection(
        f"a transposed convolution with dilation={dilation} is none of TOSA's",
        "Use dilation=1, with a kernel that has zeros between its values.",
    )


def is_fusable_clamp(node: Node, config: QuantizationConfig) -> bool:
    """Say whether the rounding of a result does what a clamp after it would.

    It does so for clamps from 0 on, if the range's lower end is the zero point: symmetric ranges
    have theirs in the middle (``backends/arm/_passes/fuse_quantized_activation_pass.py``).
    """
    spec = config.output_activation
    if spec is None or spec.qscheme is torch.per_tensor_symmetric:
        return False
    bounded = node.target is aten.hardtanh.default
    low: Any = (node.args[1] if len(node.args) > 1 else -1.0) if bounded else 0
    return bool(low == 0)
