"""Rules for the operators whose qspecs the core's toolkit does not place."""

from __future__ import annotations

from typing import Final

import torch
from attrs import frozen
from torch.fx import Node

from qcore.annotation import OperatorMatch, Rejection
from qcore.annotation.rules import write_match
from qcore.compat.torchao import (
    FixedQParamsQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qcore.graph import float_operands, is_float_tensor
from qcore.schemes import QuantizationConfig

__all__ = ["CastRule", "FixedRangeRule", "SameRangeInputsRule", "SameRangeRule"]

_INTEGERS: Final = (torch.int8, torch.int16, torch.int32)


def _write(
    match: OperatorMatch,
    inputs: dict[Node, QuantizationSpecBase | None],
    output: QuantizationSpecBase | None,
) -> None:
    write_match(match, inputs, output if is_float_tensor(match.output) else None)


@frozen
class SameRangeRule:
    """Operators whose output has the range of their input, because no rescaling is in them."""

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        source = match.root.args[0]
        if not isinstance(source, Node) or not is_float_tensor(source):
            return Rejection(
                "its first input is no float32 tensor", "Cast that to float32 before it."
            )
        _write(
            match, {source: config.input_activation}, SharedQuantizationSpec((source, match.root))
        )
        return None


@frozen
class SameRangeInputsRule:
    """Comparisons: integers compare like the values only if both sides have one range."""

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        first, *others = float_operands(match.root)
        shared = SharedQuantizationSpec((first, match.root))
        inputs: dict[Node, QuantizationSpecBase | None] = {first: config.input_activation}
        inputs.update(dict.fromkeys(others, shared))
        _write(match, inputs, None)
        return None


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
        assert config.input_activation is not None
        levels = 2 ** torch.iinfo(config.input_activation.dtype).bits
        spec = config.input_activation
        fixed = FixedQParamsQuantizationSpec(
            dtype=spec.dtype,
            scale=2 * self.limit / levels,
            zero_point=0,
            quant_min=spec.quant_min,
            quant_max=spec.quant_max,
            qscheme=spec.qscheme,
            is_dynamic=spec.is_dynamic,
        )
        _write(match, {source: fixed}, config.output_activation)
        return None


@frozen
class CastRule:
    """Casts: from integers the values are the quantized values; between floats nothing changes."""

    def __call__(self, match: OperatorMatch, config: QuantizationConfig) -> Rejection | None:
        """Annotate a match."""
        node = match.root
        (source,) = node.all_input_nodes
        before, after = source.meta["val"], node.meta["val"]
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
            _write(match, {}, exact)
            return None
        if before.dtype is after.dtype is torch.float32:
            shared = SharedQuantizationSpec((source, node))
            _write(match, {source: config.input_activation}, shared)
            return None
        kinds = f"{before.dtype} to {after.dtype}".replace("torch.", "")
        return Rejection(
            f"a cast from {kinds} has no quantized form",
            "Cast int8, int16 or int32 to float32, or move the cast out of the model.",
        )
