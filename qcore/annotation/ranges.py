"""Rules for operators whose values share a range."""

from __future__ import annotations

from attrs import frozen
from torch.fx import Node

from qcore.annotation.patterns import OperatorMatch, Rejection, without_float32
from qcore.annotation.rules import is_quantized_value, sharing_with, write_match
from qcore.compat.torchao import (
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qcore.graph import float_operands, is_float_tensor
from qcore.schemes import QuantizationConfig

__all__ = [
    "ConcatRule",
    "PassThroughRule",
    "SameRangeInputsRule",
    "SameRangeRule",
]


@frozen
class SameRangeRule:
    """Operators whose output has the range of their input, such as pooling.

    Attributes:
        quantizes_input: Whether they quantize an input that is in float, or stay in float then.
        requantizes: Whether an input that is quantized already gets the configuration's qspec, or
            keeps the range that it has.
    """

    quantizes_input: bool = True
    requantizes: bool = False

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        source = match.root.args[0]
        if not isinstance(source, Node) or not is_float_tensor(source):
            return without_float32(match.root) or Rejection("its first input is no float32 tensor")
        incoming: QuantizationSpecBase | None = config.input_activation
        output = SharedQuantizationSpec((source, match.root))
        if is_quantized_value(source) and not self.requantizes:
            incoming = output = sharing_with(source)
        elif not self.quantizes_input:
            return Rejection(
                "its input is in float, so it moves float data",
                f"It follows {source.name}: it is quantized when that is.",
            )
        write_match(match, {source: incoming}, output)
        return None


@frozen
class PassThroughRule(SameRangeRule):
    """Operators that move or clamp data: quantized if their input is, with the same range."""

    quantizes_input: bool = False


@frozen
class SameRangeInputsRule:
    """Operators with one range for all inputs, and for an output that is a float tensor.

    Comparisons are such: integers compare like the values only if both sides have one range.
    """

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        operands = float_operands(match.root)
        owner = self._owner(operands)
        shared = SharedQuantizationSpec((owner, match.root))
        inputs: dict[Node, QuantizationSpecBase | None] = {owner: config.input_activation}
        inputs.update({node: shared for node in operands if node is not owner})
        write_match(match, inputs, shared)
        return None

    def _owner(self, operands: list[Node]) -> Node:
        return operands[0]


@frozen
class ConcatRule(SameRangeInputsRule):
    """Operators that join tensors: one range for all inputs and the output.

    The range belongs to the first input that is quantized already, else to the first.
    """

    def _owner(self, operands: list[Node]) -> Node:
        return next(filter(is_quantized_value, operands), operands[0])
