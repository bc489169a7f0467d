"""Rules for operators whose values share a range, or have one that is known beforehand."""

from __future__ import annotations

from typing import Final

import torch
from attrs import frozen
from torch.fx import Node

from qcore.annotation.patterns import OperatorMatch, Rejection
from qcore.annotation.rules import is_quantized_value, sharing_with, write_match
from qcore.compat.torchao import (
    FixedQParamsQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qcore.graph import float_operands, is_float_tensor
from qcore.schemes import QuantizationConfig

__all__ = [
    "CastRule",
    "ConcatRule",
    "FixedRangeRule",
    "PassThroughRule",
    "SameRangeInputsRule",
    "SameRangeRule",
]

_INTEGERS: Final = (torch.int8, torch.int16, torch.int32)


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
            return Rejection(
                "its first input is no float32 tensor", "Cast that to float32 before it."
            )
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


@frozen
class FixedRangeRule:
    """Functions that are defined on a fixed interval: the input's range is that interval.

    A measured range could reach past its ends by rounding, where the function has no value.

    Attributes:
        limit: The interval's end; it is symmetric.
    """

    limit: float

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        source = match.root.args[0]
        assert isinstance(source, Node)
        spec = config.input_activation
        assert spec is not None
        fixed = FixedQParamsQuantizationSpec(
            dtype=spec.dtype,
            scale=2 * self.limit / 2 ** torch.iinfo(spec.dtype).bits,
            zero_point=0,
            quant_min=spec.quant_min,
            quant_max=spec.quant_max,
            qscheme=spec.qscheme,
            is_dynamic=spec.is_dynamic,
        )
        write_match(match, {source: fixed}, config.output_activation)
        return None


@frozen
class CastRule:
    """Casts: from integers the values are the quantized values; between floats nothing changes."""

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        node = match.root
        (source,) = node.all_input_nodes
        before, after = source.meta["val"], node.meta["val"]
        if before.dtype is after.dtype is torch.float32:
            return SameRangeRule(requantizes=True)(match, config)
        if before.dtype in _INTEGERS and after.dtype is torch.float32:
            limits = torch.iinfo(before.dtype)
            exact = FixedQParamsQuantizationSpec(
                dtype=before.dtype,
                scale=1.0,
                zero_point=0,
                quant_min=limits.min,
                quant_max=limits.max,
                qscheme=torch.per_tensor_symmetric,
            )
            write_match(match, {}, exact)
            return None
        kinds = f"{before.dtype} to {after.dtype}".replace("torch.", "")
        return Rejection(
            f"a cast from {kinds} has no quantized form",
            "Cast int8, int16 or int32 to float32, or move the cast out of the model.",
        )
