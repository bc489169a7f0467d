"""Rules for operators whose range is known beforehand."""

from __future__ import annotations

from typing import Final

import torch
from attrs import frozen
from torch.fx import Node

from qcore.annotation import OperatorMatch, Rejection, SameRangeRule, write_match
from qcore.compat.torchao import FixedQParamsQuantizationSpec
from qcore.schemes import QuantizationConfig

__all__ = ["CastRule", "FixedRangeRule"]

_INTEGERS: Final = (torch.int8, torch.int16, torch.int32)


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
            "Cast outside of the model, or int8, int16 or int32 to float32 in it.",
        )
