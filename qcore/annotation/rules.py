"""Rules that place the qspecs of a configuration on a match; those that share are in ``ranges``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch.fx import Node

from qcore.annotation.layers import layer_of
from qcore.annotation.patterns import OperatorMatch, Rejection
from qcore.compat.torchao import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    made_by,
)
from qcore.graph import float_operands, is_constant, is_float_tensor
from qcore.schemes import PER_CHANNEL, QuantizationConfig

__all__ = [
    "ElementwiseRule",
    "GemmRule",
    "annotation_of",
    "is_quantized_value",
    "product_scale_bias",
    "sharing_with",
    "write_annotation",
    "write_match",
]


def annotation_of(node: Node) -> QuantizationAnnotation | None:
    """Return a node's annotation, if it has one that says something."""
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    if annotation is None or not annotation._annotated:
        return None
    return annotation


def write_annotation(
    node: Node,
    inputs: Mapping[Node, QuantizationSpecBase | None] | None = None,
    output: QuantizationSpecBase | None = None,
) -> None:
    """Annotate one node.

    Args:
        node: The node.
        inputs: The qspec of each input edge; edges that are left out stay in float.
        output: The qspec of the node's value.
    """
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
        input_qspec_map=dict(inputs or {}), output_qspec=output, _annotated=True
    )


def is_quantized_value(node: Node) -> bool:
    """Say whether a node's value leaves it quantized."""
    annotation = annotation_of(node)
    return annotation is not None and annotation.output_qspec is not None


def sharing_with(node: Node) -> SharedQuantizationSpec:
    """Return a qspec that shares with a quantized value.

    It points at the value's own root: torchao follows such references recursively, and a chain of
    views would otherwise be as deep as it is long.
    """
    annotation = annotation_of(node)
    if annotation is not None and isinstance(annotation.output_qspec, SharedQuantizationSpec):
        return annotation.output_qspec
    return SharedQuantizationSpec(node)


def write_match(
    match: OperatorMatch,
    inputs: Mapping[Node, QuantizationSpecBase | None],
    output: QuantizationSpecBase | None,
) -> None:
    """Annotate the nodes of a match, with nothing quantized in between.

    Args:
        match: The match.
        inputs: The qspec of each input edge of its operator.
        output: The qspec of the value that leaves it, where that is a float tensor.
    """
    if not is_float_tensor(match.output):
        output = None
    for node in match.nodes:
        write_annotation(
            node,
            inputs if node is match.root else None,
            output if node is match.output else None,
        )


class _ProductScale(DerivedQuantizationSpec):  # type: ignore[misc]
    """A derived qspec of one edge alone.

    torchao lets the edges of a value share an observer where their qspecs agree in some fields, the
    scale among them but not what they are derived from: the calls of a shared layer would all get
    the scale of the first. Naming the factors as the scale keeps each call's own.
    """

    @property
    def scale(self) -> tuple[Any, ...]:
        """The edges whose scales are multiplied."""
        return tuple(self.derived_from)


def product_scale_bias(
    root: Node, activation: Node, weight: Node, config: QuantizationConfig
) -> QuantizationSpecBase:
    """Return the qspec of an int32 bias whose scale is that of the accumulator.

    The accumulator of integer products counts in steps of ``scale(activation) * scale(weight)``;
    with that scale and no zero point the bias is added to it as it is (see, for example, section
    2.4 of Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018).

    Args:
        root: The operator.
        activation: Its activation, with a static qspec.
        weight: Its weight.
        config: What it is quantized with.

    Returns:
        The qspec, derived from the observers of both.
    """
    per_channel = config.weight is not None and config.weight.qscheme in PER_CHANNEL
    limits = torch.iinfo(torch.int32)
    return _ProductScale(
        derived_from=[(activation, root), (weight, root)],
        derive_qparams_fn=_product_scale,
        dtype=torch.int32,
        # Symmetric: the smallest int32 has no counterpart, and some compilers refuse it.
        quant_min=limits.min + 1,
        quant_max=limits.max,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if per_channel else None,
    )


def _product_scale(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    scales = [observer.calculate_qparams()[0] for observer in observers]
    scale = (scales[0] * scales[1]).to(torch.float32)
    return scale, torch.zeros_like(scale, dtype=torch.int64)  # as those of weights


@frozen
class GemmRule:
    """Convolutions, linear layers: activation, weight and bias by position.

    Attributes:
        input: Position of the activation.
        weight: Position of the weight. One that is computed at run time has the activations'
            qspec, where the backend's checks let it pass.
        bias: Position of the bias, or ``None``.
        weight_axis: Dimension of the weight that per-channel scales run along; by default what
            :data:`qcore.annotation.layers.LAYERS` says, and 0 for other operators.
        integer_bias: Whether the bias is int32 with the scale of the accumulator, where
            activations are static; otherwise it has the configuration's qspec, if any.
    """

    input: int = 0
    weight: int = 1
    bias: int | None = 2
    weight_axis: int | None = None
    integer_bias: bool = False

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        root = match.root
        activation, weight = root.args[self.input], root.args[self.weight]
        assert isinstance(activation, Node)
        assert isinstance(weight, Node)
        layer = layer_of(root)
        axis = self.weight_axis
        if axis is None:
            axis = layer.weight_axis(root) if layer else 0
        inputs: dict[Node, QuantizationSpecBase | None] = {
            activation: config.input_activation,
            weight: _along_axis(config.weight, axis)
            if is_constant(weight)
            else config.input_activation,
        }
        bias = root.args[self.bias] if self.bias and len(root.args) > self.bias else None
        if isinstance(bias, Node):
            if self.integer_bias and None not in (config.output_activation, config.weight):
                inputs[bias] = product_scale_bias(root, activation, weight, config)
            else:
                inputs[bias] = config.bias
        write_match(match, inputs, config.output_activation)
        return None


def _along_axis(spec: QuantizationSpec | None, axis: int) -> QuantizationSpec | None:
    if spec is None or spec.qscheme not in PER_CHANNEL or spec.ch_axis == axis:
        return spec
    observer = spec.observer_or_fake_quant_ctr
    made, options = made_by(observer)
    if axis != 0 and inspect.isclass(made) and issubclass(made, FusedMovingAvgObsFakeQuantize):
        # torch's fused kernel takes rows for channels, whatever the axis.
        observer = FakeQuantize.with_args(
            **{**options, "observer": MovingAveragePerChannelMinMaxObserver, "ch_axis": axis}
        )
    return dataclasses.replace(spec, ch_axis=axis, observer_or_fake_quant_ctr=observer)


@frozen
class ElementwiseRule:
    """Operators whose float inputs and output each have a range of their own.

    Inputs that are indices or conditions stay as they are; constants have no inputs at all.
    """

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        inputs = dict.fromkeys(float_operands(match.root), config.input_activation)
        write_match(match, inputs, config.output_activation)
        return None
