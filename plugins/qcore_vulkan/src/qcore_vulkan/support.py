"""What ExecuTorch's Vulkan delegate executes with quantized weights, as data.

Read off the graphs inside lowered programs: a scheme is here where ExecuTorch 1.4 fuses it into a
quantized operator. It also takes others into the delegate, and dequantizes their weights at every
run, or drops the quantization of activations: dynamic activations by PT2E, and 8-bit weights by
``quantize_``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule

from qcore.annotation import GemmRule, OperatorMatch, OperatorPattern, Rejection, SupportTable
from qcore.annotation.checks import float_inputs, static_weight, weight_shape
from qcore.schemes import LayerScheme, QuantizationConfig, QuantizationScheme

__all__ = ["SCHEMES", "TABLE"]

# Values of a texel: ``backends/vulkan/patterns/quantized_linear.py`` matches no other number of
# inputs, and pads the scales of other numbers of outputs into shapes that its operator refuses.
_TEXEL: Final = 4

SCHEMES: Final = (
    QuantizationScheme(8, None, "per_channel"),
    QuantizationScheme(4, None, "per_channel"),
    *(
        LayerScheme(
            4,
            activation_bits,
            "per_group",
            is_dynamic=activation_bits is not None,
            layer="linear",
            group_multiple=_TEXEL,
            output_multiple=_TEXEL,
        )
        for activation_bits in (8, None)
    ),
)


def whole_texels(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject linear layers whose rows do not fill texels."""
    del config, model
    shape = weight_shape(match)
    if shape is None or shape[-1] % _TEXEL == 0:
        return None
    return Rejection(
        f"it has {shape[-1]} inputs, and vulkan's quantized linear takes multiples of {_TEXEL}",
        "Add inputs that are zero, with weights that are.",
    )


TABLE: Final = SupportTable(
    (
        OperatorPattern(
            "linear",
            (torch.ops.aten.linear.default,),
            GemmRule(),
            checks=(float_inputs, static_weight, whole_texels),
        ),
    )
)
