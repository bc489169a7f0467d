"""The integer backend: what it executes, as data, and what qcore's hooks mean for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import define
from torch.export import ExportedProgram
from torch.fx import GraphModule

import qcore
from qcore.annotation import (
    ElementwiseRule,
    GemmRule,
    OperatorMatch,
    OperatorPattern,
    PassThroughRule,
    Rejection,
    SameRangeRule,
    SupportTable,
    annotate_graph,
    scalars_to_attributes,
)
from qcore.annotation.checks import (
    constants_fit_histogram,
    float_inputs,
    no_alpha,
    static_weight,
    whole_plane,
)
from qcore.lowering import LoweredProgram, check_options
from qcore.plan import QuantizationPlan
from qcore.report import AnnotationReport
from qcore.schemes import QuantizationConfig, QuantizationScheme
from qcore_integer.lowering import lower_to_integers

__all__ = ["IntegerBackend"]

aten = torch.ops.aten


def zeros_around(
    match: OperatorMatch, config: QuantizationConfig, model: GraphModule
) -> Rejection | None:
    """Reject padding with anything but zeros, which every range has."""
    del config, model
    if match.root.args[2:3] == ("constant",) and not any(match.root.args[3:]):
        return None
    return Rejection("it pads with something else than zeros", "Pad with zeros.")


SCHEMES = tuple(QuantizationScheme(8, 8, kind) for kind in ("per_channel", "per_tensor"))
CLAMPS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)
IN_INT32 = GemmRule(integer_bias=True)
LAYER = (float_inputs, static_weight)
TWO = (float_inputs, no_alpha, constants_fit_histogram)

TABLE = SupportTable(
    (
        OperatorPattern("linear", (aten.linear.default,), IN_INT32, CLAMPS, checks=LAYER),
        OperatorPattern("conv2d", (aten.conv2d.default,), IN_INT32, CLAMPS, checks=LAYER),
        OperatorPattern("add", (aten.add.Tensor,), ElementwiseRule(), CLAMPS, checks=TWO),
        OperatorPattern("mul", (aten.mul.Tensor,), ElementwiseRule(), CLAMPS, checks=TWO),
        OperatorPattern(
            "average",
            (aten.adaptive_avg_pool2d.default,),
            SameRangeRule(),
            checks=(float_inputs, whole_plane),
        ),
        OperatorPattern(
            "pad",
            (aten.pad.default,),
            PassThroughRule(),
            follows_input=True,
            checks=(zeros_around,),
        ),
        OperatorPattern(
            "move",
            (
                *CLAMPS,
                aten.dropout.default,
                aten.view.default,
                aten.reshape.default,
                aten.permute.default,
                aten.transpose.int,
                aten.flatten.using_ints,
                aten.unsqueeze.default,
            ),
            PassThroughRule(),
            follows_input=True,
        ),
    )
)


@define
class IntegerBackend:
    """Int8 on numpy."""

    name: ClassVar[str] = "integer"
    api_version: ClassVar[int] = 2

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """Both granularities of 8a8w."""
        return SCHEMES

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Make the scalars of additions and products tensors, which can be quantized."""
        return scalars_to_attributes(model, plan, (aten.add.Tensor, aten.mul.Tensor))

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Apply the support table."""
        return annotate_graph(model, plan, TABLE, self.name)

    @qcore.hookimpl
    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Compile the model into steps, and write them with their constants into one file."""
        check_options(self.name, options, ())
        return lower_to_integers(program, self.name)
