"""Bias correction: take back the mean error that rounding the weights puts on a layer's output.

A layer computes with rounded weights W' instead of W. Over the calibration set its output is off by
the mean of op(x, W - W'), one number per output channel, which its bias can absorb. Every layer is
corrected by itself, with the inputs of the float model, so that no layer fits the drift of others.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2, with means measured instead of derived.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch.fx import GraphModule, Node

from qcore.algorithms.protocol import Algorithm
from qcore.annotation.layers import Layer, layer_of
from qcore.compat.torchao import check_observers
from qcore.graph import insert_constant, tensor_attribute

__all__ = ["BiasCorrection"]


class _InputMean(torch.nn.Module):  # type: ignore[misc]
    """Keeps the mean of what passes, by shape: a layer is linear, so means are all it needs."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.sums: dict[torch.Size, tuple[torch.Tensor, int]] = {}

    def forward(self, x: torch.Tensor) -> None:
        """Add one input of the layer."""
        if not self.layer.spatial:
            rows = x.reshape(-1, x.shape[-1])
            total, count = rows.sum(0, keepdim=True), rows.shape[0]
        elif x.dim() == self.layer.rank:
            # A sum over one sample would be a copy of it.
            total, count = x if x.shape[0] == 1 else x.sum(0, keepdim=True), x.shape[0]
        else:
            total, count = x.unsqueeze(0), 1
        if total.shape in self.sums:
            before, so_far = self.sums[total.shape]
            self.sums[total.shape] = before.add_(total), so_far + count
        else:
            self.sums[total.shape] = total.clone(), count


@frozen
class BiasCorrection(Algorithm):
    """Measures the inputs of the layers of a prepared model, and corrects their biases."""

    name: ClassVar[str] = "bias_correction"

    def attach(self, graphs: Sequence[GraphModule]) -> Callable[[], int]:
        """Insert a recorder before every layer with static activations and constant weights.

        What is returned corrects the layers that have seen samples, and says how many these are.
        """
        recorders: list[tuple[GraphModule, Node, Node]] = []
        for graph in graphs:
            for index, node in enumerate(list(graph.graph.nodes)):
                layer = layer_of(node)
                if layer is None or not _is_static(graph, node):
                    continue
                name = f"_input_mean_{index}"
                graph.add_module(name, _InputMean(layer))
                with graph.graph.inserting_before(node):
                    call = graph.graph.call_module(name, (node.args[0],))
                recorders.append((graph, node, call))
            graph.recompile()
        return partial(_correct, graphs, recorders)


def _correct(
    graphs: Sequence[GraphModule], recorders: Sequence[tuple[GraphModule, Node, Node]]
) -> int:
    corrected = 0
    for graph, node, call in recorders:
        recorder = getattr(graph, str(call.target))
        graph.graph.erase_node(call)
        delattr(graph, str(call.target))
        if recorder.sums:
            _set_bias(graph, node, _mean_error(graph, node, recorder))
            corrected += 1
    for graph in graphs:
        graph.recompile()
    return corrected


def _observed(graph: GraphModule, node: object) -> tuple[Any, Node] | None:
    """Return the observer on a value, and the value."""
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    observer = operator.attrgetter(str(node.target))(graph)
    source = node.args[0]
    return (observer, source) if isinstance(source, Node) else None


def _is_static(graph: GraphModule, node: Node) -> bool:
    activation, weight = _observed(graph, node.args[0]), _observed(graph, node.args[1])
    if activation is None or weight is None or weight[1].op != "get_attr":
        return False
    check_observers()
    return not getattr(activation[0], "is_dynamic", False)


def _mean_error(graph: GraphModule, node: Node, recorder: _InputMean) -> torch.Tensor:
    """Return the mean over the samples of op(x, W - W'), per output channel."""
    observed = _observed(graph, node.args[1])
    assert observed is not None
    observer, source = observed
    weight = tensor_attribute(graph, source).detach()
    lost = weight - _rounded(weight, observer)
    total, count = torch.zeros(()), 0
    for inputs, seen in recorder.sums.values():
        output = node.target(inputs, lost, None, *node.args[3:])
        channel = recorder.layer.output_axis % output.dim()
        others = [axis for axis in range(output.dim()) if axis != channel]
        total = total + output.mean(others)
        count += seen
    return total / count


def _rounded(weight: torch.Tensor, observer: Any) -> torch.Tensor:
    scale, zero_point = observer.calculate_qparams()
    low, high = observer.quant_min, observer.quant_max
    if scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(
            weight, scale.reshape(()), zero_point.reshape(()).int(), low, high
        )
    return torch.fake_quantize_per_channel_affine(
        weight, scale, zero_point.int(), observer.ch_axis, low, high
    )


def _set_bias(graph: GraphModule, node: Node, correction: torch.Tensor) -> None:
    reader, bias = node, node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and bias.op == "call_module":
        reader, bias = bias, bias.args[0]  # A backend that observes biases.
    if isinstance(bias, Node):
        if bias.op != "get_attr":
            return
        correction = tensor_attribute(graph, bias).detach() + correction
    name = f"_corrected_bias_{node.name}"
    graph.register_buffer(name, correction)
    attribute = insert_constant(graph, reader, name, node)
    if isinstance(bias, Node):
        attribute.meta = dict(bias.meta)
        reader.replace_input_with(bias, attribute)
    else:
        node.args = (*node.args[:2], attribute, *node.args[3:])
