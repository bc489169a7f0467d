"""A number format, how torchao spells it, and the formats that bits stand for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from attrs import evolve, field, frozen, validators

from qcore.compat.torchao import (
    MinMaxObserver,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationSpec,
    maker_of,
)
from qcore.errors import UnsupportedSchemeError
from qcore.formats.scales import SYMMETRIC, ScaleRule, with_scales

__all__ = [
    "ACTIVATIONS",
    "INT8",
    "INT8_WEIGHTS",
    "INT16",
    "LABEL",
    "SMALLEST_SCALE",
    "UINT8",
    "WEIGHTS",
    "FormatObserver",
    "NumberFormat",
    "integer_format",
]

#: What a label may be, as a regular expression: ``8``, ``16``, ``u8``, ``fp8``.
LABEL: Final = r"[a-z]*\d+"

#: The smallest scale: integer kernels multiply by the ratio of scales in fixed point, which loses
#: precision where one is smaller.
SMALLEST_SCALE: Final = 2**-12

_QSCHEMES: Final = {
    # symmetric, per channel
    (True, True): torch.per_channel_symmetric,
    (True, False): torch.per_tensor_symmetric,
    (False, True): torch.per_channel_affine,
    (False, False): torch.per_tensor_affine,
}


@frozen
class NumberFormat:
    """How real numbers become levels: real = scale x (level - zero point).

    Attributes:
        label: Its name in the names of schemes, such as ``8`` in ``8a8w``: letters, then digits.
        dtype: The type that levels are stored in.
        lowest: The smallest level.
        highest: The largest level.
        symmetric: Whether the zero point is fixed, at 0 for signed types.
        scales: What scales must be; ``None`` where any is allowed.
        smallest_scale: The smallest scale that observers may return. Where there is a rule for
            scales, hardware has no smaller one; otherwise it only computes less precisely.
    """

    label: str = field(validator=validators.matches_re(LABEL))
    dtype: torch.dtype
    lowest: int
    highest: int
    symmetric: bool = False
    scales: ScaleRule | None = None
    smallest_scale: float = SMALLEST_SCALE

    def __attrs_post_init__(self) -> None:
        info = _limits(self.dtype)
        if not info.min <= self.lowest < self.highest <= info.max:
            raise UnsupportedSchemeError(
                f"{self.lowest} to {self.highest} is not a range of {self.dtype}: give "
                f"{self.label!r} levels from {info.min} to {info.max}."
            )

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return kind if self.bits == _limits(self.dtype).bits else f"{self.label}-bit {kind}"

    @property
    def bits(self) -> int:
        """Bits that number the levels, whatever the type that stores them."""
        if self.dtype.is_floating_point:
            return int(_limits(self.dtype).bits)
        return int(self.highest - self.lowest).bit_length()

    @property
    def words(self) -> str:
        """What hardware wants of it, in words: ``symmetric int8, power-of-two scales``."""
        if self.scales is None:
            return f"{'' if self.symmetric else 'a'}symmetric {self}"
        rule = getattr(self.scales, "__name__", str(self.scales)).replace("_", "-")
        kind = f"{'' if self.symmetric else 'a'}symmetric {self}, {rule} scales"
        return f"{kind} from {self.smallest_scale:.3g}"

    def holds(self, other: NumberFormat) -> bool:
        """Say whether a kernel for this format computes with values of another one.

        Args:
            other: The format of the values.

        Returns:
            Whether they have the same type, no more bits, and scales and zero points that this
            format allows. Bits are compared, not limits: kernels take the level -128, which
            symmetric int8 leaves out.
        """
        if self.scales is not None and other.smallest_scale < self.smallest_scale:
            return False
        return (
            self.dtype == other.dtype
            and other.bits <= self.bits
            and (other.symmetric or not self.symmetric)
            and self.scales in (None, other.scales)
        )

    def narrowed(self, bits: int) -> NumberFormat:
        """Return the signed format of fewer bits in the same type, with their number as label."""
        highest = 2 ** (bits - 1) - 1
        return self.with_range(-highest if self.symmetric else -highest - 1, highest)

    def with_range(self, lowest: int, highest: int) -> NumberFormat:
        """Return the format of other levels in the same type, labelled by type and bits."""
        kind = "fp" if self.dtype.is_floating_point else "" if self.dtype.is_signed else "u"
        other = evolve(self, lowest=lowest, highest=highest)
        return evolve(other, label=f"{kind}{other.bits}")

    @classmethod
    def of(cls, spec: QuantizationSpec | None) -> NumberFormat | None:
        """Read the format off a qspec.

        Args:
            spec: Any qspec with a type, or ``None``.

        Returns:
            The format that the qspec was built from, where one was; else one that is labelled by
            type and bits. ``None`` for ``None``.
        """
        if spec is None:
            return None
        info = _limits(spec.dtype)
        made = getattr(maker_of(spec), "format", None)
        low = info.min if spec.quant_min is None else spec.quant_min
        high = info.max if spec.quant_max is None else spec.quant_max
        if made is None or made.dtype != spec.dtype:
            made = cls("0", spec.dtype, info.min, info.max)
        made = evolve(made, symmetric=spec.qscheme in SYMMETRIC)
        known = made.label != "0" and (made.lowest, made.highest) == (low, high)
        return made if known else made.with_range(low, high)

    def activation_qspec(
        self, observer: Any, *, is_dynamic: bool, is_chosen: bool = False
    ) -> QuantizationSpec:
        """Build the qspec of an activation, with one scale.

        Args:
            observer: The observer's class or constructor for static activations; takes ``eps``.
            is_dynamic: Ranges are measured at run time.
            is_chosen: Whether a calibration method chose the observer, so that another may.

        Returns:
            The qspec.

        Raises:
            UnsupportedSchemeError: The range is dynamic and the format does not allow any scale,
                or levels are no integers.
        """
        if is_dynamic and self.scales is not None:
            raise UnsupportedSchemeError(
                f"The format {self.label!r} allows some scales only, and dynamic ranges give any. "
                "Take static activations, or a format without a rule for scales."
            )
        if is_dynamic:
            return self._qspec(FormatObserver(PlaceholderObserver, self), is_dynamic=True)
        return self._qspec(FormatObserver(observer, self, is_chosen))

    def weight_qspec(
        self, *, is_per_channel: bool, is_per_operator: bool = False
    ) -> QuantizationSpec:
        """Build the qspec of a weight, whose range is that of its values.

        Args:
            is_per_channel: One scale for each output channel, axis 0, instead of one.
            is_per_operator: Whether that is for the backend to say, by operator.

        Returns:
            The qspec.

        Raises:
            UnsupportedSchemeError: Levels are no integers.
        """
        observer = PerChannelMinMaxObserver if is_per_channel else MinMaxObserver
        maker = FormatObserver(observer, self, is_weight=True, is_per_operator=is_per_operator)
        return self._qspec(maker, is_per_channel=is_per_channel, ch_axis=0)

    def _qspec(
        self, observer: FormatObserver, *, is_per_channel: bool = False, **details: Any
    ) -> QuantizationSpec:
        if self.dtype.is_floating_point:
            raise UnsupportedSchemeError(
                f"The format {self.label!r} has levels of {self.dtype}, and torchao's PT2E flow "
                "rounds to whole levels before it stores them: half a scale and less becomes 0. "
                f"Take integers, such as QuantizationScheme({self.bits}, {self.bits})."
            )
        return QuantizationSpec(
            dtype=self.dtype,
            quant_min=self.lowest,
            quant_max=self.highest,
            qscheme=_QSCHEMES[self.symmetric, is_per_channel],
            observer_or_fake_quant_ctr=observer,
            **details,
        )


class FormatObserver(PartialWrapper):  # type: ignore[misc]
    """torchao's constructor of an observer, for a format.

    Args:
        make: The class of an observer or of fake quantization, or a constructor of torchao's.
        number_format: The format whose scales it returns.
        is_chosen: Whether a calibration method chose it, so that another one may replace it.
        is_weight: Whether all that it sees is one tensor, which helps to choose between scales.
        is_per_operator: Whether the backend says for each operator how finely it scales weights.
    """

    def __init__(
        self,
        make: Any,
        number_format: NumberFormat,
        is_chosen: bool = False,
        is_weight: bool = False,
        is_per_operator: bool = False,
    ) -> None:
        inner = make.p if isinstance(make, PartialWrapper) else make
        super().__init__(partial(inner, eps=number_format.smallest_scale))
        self.format = number_format
        self.is_chosen = is_chosen
        self.is_weight = is_weight
        self.is_per_operator = is_per_operator

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Build the observer, with scales as the format has them."""
        observer = super().__call__(*args, **keywords)
        if self.format.scales is not None:
            cls: Any = type(observer)
            observer.__class__ = with_scales(cls, self.format.scales, self.is_weight)
        return observer


def _limits(dtype: torch.dtype) -> Any:
    return torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)


#: Affine int8 activations.
INT8: Final = NumberFormat("8", torch.int8, -128, 127)
#: Affine uint8, for inputs and outputs.
UINT8: Final = NumberFormat("u8", torch.uint8, 0, 255)
#: Symmetric int16: integer kernels give 16-bit activations no zero point (LiteRT's 16x8 scheme).
INT16: Final = NumberFormat("16", torch.int16, -32767, 32767, symmetric=True)
#: Symmetric int8 weights, without -128.
INT8_WEIGHTS: Final = NumberFormat("8", torch.int8, -127, 127, symmetric=True)

#: What a number of bits means in a scheme: the first format with as many, narrowed to them.
ACTIVATIONS: Final = (INT8, INT16)
#: The same for weights.
WEIGHTS: Final = (INT8_WEIGHTS,)


def integer_format(
    wanted: NumberFormat | int | None, formats: Sequence[NumberFormat]
) -> NumberFormat | None:
    """Return the format that a number of bits stands for.

    Args:
        wanted: Bits, or a format or ``None``, which stay as they are.
        formats: :data:`WEIGHTS` or :data:`ACTIVATIONS`.

    Returns:
        The format.

    Raises:
        UnsupportedSchemeError: None has so many bits.
    """
    if wanted is None or isinstance(wanted, NumberFormat):
        return wanted
    for wider in formats:
        if 1 < wanted <= wider.bits:
            return wider.narrowed(wanted)
    raise UnsupportedSchemeError(
        f"{wanted!r} bits stand for no format: pass 2 to {formats[-1].bits}, or a "
        "qcore.formats.NumberFormat."
    )
