"""Reasons why a match cannot be quantized."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.annotation.patterns import OperatorMatch, Rejection
from qcore.graph import is_constant, is_float_tensor, tensor_attribute, tensor_value
from qcore.schemes import QuantizationConfig

__all__ = [
    "HISTOGRAM_LIMIT",
    "constants_fit_histogram",
    "fits_histogram",
    "float_inputs",
    "no_alpha",
    "static_weight",
    "weight_shape",
    "whole_plane",
]


#: The largest constant that a histogram takes: torch.histc overflows above float32 max * 1e-23.
HISTOGRAM_LIMIT: Final = 3.4028235e15


def float_inputs(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject operators on anything but float32 tensors, which is all that observers measure."""
    del config, model
    for node in (*match.root.all_input_nodes, match.root):
        if not is_float_tensor(node):
            value = tensor_value(node)
            if value is None:
                return Rejection(f"{node.name} is not a single tensor")
            kind = str(value.dtype).removeprefix("torch.")
            reason = f"{node.name} is {kind}, and only float32 is quantized"
            if value.dtype.is_floating_point:
                return Rejection(reason, "Cast the model to float32 first.")
            return Rejection(reason)
    return None


def static_weight(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject weights that are computed from the model's inputs."""
    del config, model
    weight = match.root.args[getattr(match.pattern.rule, "weight", 1)]
    if isinstance(weight, Node) and not is_constant(weight):
        return Rejection(
            "its weight is computed at run time",
            "Only weights that are parameters or buffers are quantized.",
        )
    return None


def constants_fit_histogram(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject scalar constants that are too large for a histogram."""
    del config
    for node in match.root.all_input_nodes:
        if node.op != "get_attr":
            continue
        value = tensor_attribute(model, node)
        rejection = fits_histogram(value.item()) if value.numel() == 1 else None
        if rejection is not None:
            return rejection
    return None


def fits_histogram(value: float) -> Rejection | None:
    """Reject a constant that is too large for a histogram."""
    if abs(value) <= HISTOGRAM_LIMIT:
        return None
    return Rejection(
        f"the constant {value:g} is too large to quantize",
        "Use a smaller one: what is far outside the range of the other values saturates anyway.",
    )


def no_alpha(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject ``add``/``sub`` with a scaled second operand."""
    del config, model
    alpha: Any = match.root.kwargs.get("alpha", 1)
    if alpha != 1:
        return Rejection(f"alpha={alpha} is not supported", "Multiply the operand instead.")
    return None


def whole_plane(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject adaptive pooling to more than one value for a plane."""
    del config, model
    if all(size == 1 for size in match.root.args[1]):
        return None
    return Rejection("it gives more than one value for a plane", "Pool to a size of 1.")


def weight_shape(match: OperatorMatch) -> torch.Size | None:
    """Return the shape of a match's weight, if it has one."""
    weight = match.root.args[getattr(match.pattern.rule, "weight", 1)]
    value = tensor_value(weight)
    return None if value is None else value.shape
