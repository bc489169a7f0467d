"""Defects in what is rewritten, and in what may stay in float."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

import qcore
from qcore.annotation import scalars_to_attributes
from qcore.report import Diagnostic
from qcore_portable import PortableBackend

from .defects import calls, caught_by

aten = torch.ops.aten


@caught_by(
    calls("transform_keeps_the_outputs", "linear"),
    "transform_for_annotation changes what linear computes in float: .* dB",
)
class ChangesTheOutputs(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in list(model.graph.nodes):
            if node.target is aten.linear.default:
                with model.graph.inserting_after(node):
                    wrong = model.graph.call_function(aten.mul.Scalar, (node, 1.001))
                node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)  # noqa: B023
                wrong.meta = dict(node.meta)
        model.recompile()
        return model


@caught_by(
    calls("transform_keeps_the_outputs", "integer_tensors"),
    "running integer_tensors as transform_for_annotation left it raised|was torch.int64 and became",
)
class MakesIntegersFloat(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            if node.target in (aten.add.Tensor, aten.mul.Tensor):
                node.args = tuple(float(a) if isinstance(a, int) else a for a in node.args)
        model.recompile()
        return scalars_to_attributes(model, plan, (aten.add.Tensor,))


@caught_by(
    calls("transform_leaves_alone_what_stays_in_float", "conv_relu6"),
    r"transform_for_annotation rewrites conv_relu6, of which set_global\(None\) leaves everything",
)
class RewritesWhatStaysInFloat(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            if node.target in (aten.relu6.default, aten.hardtanh.default):
                node.target, node.args = aten.clamp.default, (node.args[0], 0.0, 6.0)
        model.recompile()
        return model


@caught_by(
    calls("the_model_of_the_user_is_kept"),
    "quantizing changes .*weight of the user's model",
)
class WritesToTheModelOfTheUser(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for parameter in model.parameters():
            parameter.data.mul_(1.0001)
        return model


@caught_by(
    calls("pt2e_flow", "attention"),
    "attention is refused because part of it stays in float, and the requirements say partial=True",
)
class RefusesPartsInFloat(PortableBackend):
    @qcore.hookimpl
    def validate_partial(self, model: Any, plan: Any, report: Any) -> Any:
        return [Diagnostic(d.node, d.operator, d.module, d.reason) for d in report.in_float]


@caught_by(calls("partial_quantization"), "a model partly in float was accepted")
class SaysThatItRefusesPartsInFloat(PortableBackend):
    conformance: ClassVar = {"delegates": False, "partial": False}


class Rewrites(PortableBackend):
    """Rewrites the nodes of some operators."""

    targets: ClassVar[tuple[Any, ...]] = ()

    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in list(model.graph.nodes):
            if node.target in self.targets:
                self.rewrite(node)
        model.graph.eliminate_dead_code()
        model.recompile()
        return scalars_to_attributes(model, plan, (aten.add.Tensor,))

    def rewrite(self, node: Any) -> None:
        raise NotImplementedError


@caught_by(
    calls("transform_keeps_the_outputs", "conv_relu6"),
    "transform_for_annotation changes what conv_relu6 computes in float: .* dB",
)
class ClampsRelu6Lower(Rewrites):
    targets: ClassVar = (aten.relu6.default, aten.hardtanh.default)

    def rewrite(self, node: Any) -> None:
        node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 5.8)


@caught_by(
    calls("transform_keeps_the_outputs", "conv_bn_relu"),
    "transform_for_annotation changes what conv_bn_relu computes in float: .* dB",
)
class DropsReluInFloat(Rewrites):
    targets: ClassVar = (aten.relu.default,)

    def rewrite(self, node: Any) -> None:
        node.replace_all_uses_with(node.args[0])


@caught_by(
    calls("transform_keeps_the_outputs", "linear"),
    "transform_for_annotation changes what linear computes in float: .* dB",
)
class DropsTheBiasInFloat(Rewrites):
    targets: ClassVar = (aten.linear.default,)

    def rewrite(self, node: Any) -> None:
        node.args = node.args[:2]


@caught_by(
    calls("transform_keeps_the_outputs", "depthwise"),
    "running depthwise as transform_for_annotation left it raised|changes what depthwise computes",
)
class ForgetsGroups(Rewrites):
    targets: ClassVar = (aten.conv2d.default,)

    def rewrite(self, node: Any) -> None:
        node.args = node.args[:6]
