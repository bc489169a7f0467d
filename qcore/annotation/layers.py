"""Facts about layers: which argument is the weight, and where the output channels lie."""

from __future__ import annotations

from typing import Any, Final

import torch
from attrs import frozen
from torch.fx import Node

from qcore.graph import argument_of

__all__ = ["LAYERS", "Layer", "convolution_groups", "layer_of"]

aten = torch.ops.aten


@frozen
class Layer:
    """Where an operator with a weight has what; its input is its first argument.

    Attributes:
        spatial: How many dimensions it convolves along; 0 for a linear layer.
        transposed: Whether it is a transposed convolution.
        weight: Position of the weight.
        bias: Position of the bias.
    """

    spatial: int
    transposed: bool = False
    weight: int = 1
    bias: int = 2

    @property
    def rank(self) -> int:
        """How many dimensions its input has with a batch; a linear layer takes more, too."""
        return self.spatial + 2

    @property
    def output_axis(self) -> int:
        """The dimension of its output that the channels lie along."""
        return 1 if self.spatial else -1

    def weight_axis(self, node: Node) -> int:
        """Return the dimension of the weight that the output channels lie along.

        Args:
            node: The operator. The weight of a transposed convolution is (inputs, outputs / groups,
                ...); where it is depthwise, its inputs are its outputs.

        Returns:
            0 or 1.
        """
        return int(self.transposed and convolution_groups(node) == 1)


#: Operator -> what its arguments are.
LAYERS: Final[dict[Any, Layer]] = {
    aten.linear.default: Layer(0),
    aten.conv1d.default: Layer(1),
    aten.conv1d.padding: Layer(1),
    aten.conv2d.default: Layer(2),
    aten.conv2d.padding: Layer(2),
    aten.conv3d.default: Layer(3),
    aten.conv3d.padding: Layer(3),
    aten.conv_transpose1d.default: Layer(1, transposed=True),
    aten.conv_transpose2d.input: Layer(2, transposed=True),
    aten.conv_transpose3d.input: Layer(3, transposed=True),
}


def layer_of(node: Node) -> Layer | None:
    """Return the facts about a node's operator, if it is a layer with a weight."""
    return LAYERS.get(node.target) if node.op == "call_function" else None


def convolution_groups(node: Node) -> int:
    """Return the groups of a convolution, transposed or not."""
    return int(argument_of(node, "groups", 1))
