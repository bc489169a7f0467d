"""A qcore backend for any CPU: quantized models on ExecuTorch's portable kernels.

Weights are stored as int8, a quarter of their size in float. Values are computed in float, between
quantize and dequantize operators: a program gives what the quantized model gives, anywhere that
ExecuTorch runs, and no delegate is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import define
from torch.export import ExportedProgram
from torch.fx import GraphModule

import qcore
from qcore.annotation import (
    CLAMPS,
    ConcatRule,
    ElementwiseRule,
    GemmRule,
    OperatorPattern,
    PassThroughRule,
    SameRangeRule,
    SupportTable,
    annotate_graph,
    scalars_to_attributes,
)
from qcore.annotation.checks import constants_fit_histogram, float_inputs, no_alpha, static_weight
from qcore.lowering import LoweredProgram, check_options
from qcore.plan import QuantizationPlan
from qcore.report import AnnotationReport
from qcore.schemes import LayerScheme, QuantizationScheme
from qcore_executorch import ExecuTorchLowering, ExecuTorchRunner

__all__ = ["PortableBackend"]

aten = torch.ops.aten

SCHEMES = (
    *(
        QuantizationScheme(8, activation_bits, granularity)
        for activation_bits in (8, None)
        for granularity in ("per_channel", "per_tensor")
    ),
    *(
        LayerScheme(bits, None, "per_channel", layer="embedding", group_multiple=multiple)
        for bits, multiple in ((8, 1), (4, 2))
    ),
)

GEMM_CHECKS = (float_inputs, static_weight)
ADD_CHECKS = (float_inputs, no_alpha, constants_fit_histogram)

TABLE = SupportTable(
    (
        OperatorPattern(
            "linear", (aten.linear.default,), GemmRule(), fuses=CLAMPS, checks=GEMM_CHECKS
        ),
        OperatorPattern(
            "conv2d", (aten.conv2d.default,), GemmRule(), fuses=CLAMPS, checks=GEMM_CHECKS
        ),
        OperatorPattern(
            "add",
            (aten.add.Tensor,),
            ElementwiseRule(),
            fuses=CLAMPS,
            checks=ADD_CHECKS,
        ),
        OperatorPattern("cat", (aten.cat.default,), ConcatRule(), checks=(float_inputs,)),
        OperatorPattern(
            "avg_pool", (aten.adaptive_avg_pool2d.default,), SameRangeRule(), checks=(float_inputs,)
        ),
        OperatorPattern(
            "move",
            (
                aten.relu.default,
                aten.max_pool2d.default,
                aten.permute.default,
                aten.view.default,
                aten.reshape.default,
                aten.flatten.using_ints,
                aten.squeeze.dim,
                aten.unsqueeze.default,
            ),
            PassThroughRule(),
            follows_input=True,
        ),
    )
)


@define
class PortableBackend:
    """Int8 on ExecuTorch's portable kernels; takes no options."""

    name: ClassVar[str] = "portable"
    api_version: ClassVar[int] = 2
    conformance: ClassVar[Mapping[str, Any]] = {"delegates": False}

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """8a8w and 8w in the PT2E flow; 8- and 4-bit embeddings by ``qcore.quantize_``."""
        return SCHEMES

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Make the scalars of additions tensors, which can be quantized."""
        return scalars_to_attributes(model, plan, (aten.add.Tensor,))

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Apply the support table."""
        return annotate_graph(model, plan, TABLE, self.name)

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Leave every operator to the portable kernels."""
        check_options(self.name, options, ("check",))
        check = options.get("check", True)
        return ExecuTorchLowering(self.name, runner=ExecuTorchRunner(), check=check).lower(program)
