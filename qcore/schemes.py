"""Quantization schemes as data, and what a scheme's name means for a backend.

A *configuration* is torchao's ``QuantizationConfig``: the qspecs (with their observers) for
activations, weights and bias. A *scheme* is what remains of it when the observers are left out:
number formats, granularity, static or dynamic. Backends declare schemes; users pass configurations
or a scheme's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, Self, TypeAlias

import torch
from attrs import evolve, field, frozen

from qcore.compat.torchao import QuantizationConfig, QuantizationSpec, maker_of
from qcore.configs import build_config, get_symmetric_quantization_config
from qcore.errors import UnsupportedSchemeError, near_misses
from qcore.formats import (
    ACTIVATIONS,
    INT8,
    INT8_WEIGHTS,
    WEIGHTS,
    NumberFormat,
    integer_format,
)
from qcore.grammar import Granularity, SchemeName, names_elsewhere

__all__ = [
    "PER_CHANNEL",
    "IoScheme",
    "LayerScheme",
    "QuantizationConfig",
    "QuantizationScheme",
    "QuantizationSpec",
    "SchemeLike",
    "check_scheme",
    "get_symmetric_quantization_config",
    "listed",
    "parse_name",
    "resolve_config",
]

Layer = Literal["linear", "embedding"]

#: What users pass for one: a configuration, a scheme, a scheme's name, ``None`` for float.
SchemeLike: TypeAlias = "QuantizationConfig | QuantizationScheme | str | None"

#: The kinds of qspec with a scale for each channel.
PER_CHANNEL: Final = (torch.per_channel_symmetric, torch.per_channel_affine)


def _weights(wanted: NumberFormat | int | None) -> NumberFormat | None:
    return integer_format(wanted, WEIGHTS)


def _activations(wanted: NumberFormat | int | None) -> NumberFormat | None:
    return integer_format(wanted, ACTIVATIONS)


@frozen
class QuantizationScheme:
    """What is quantized to which numbers, and how finely: a configuration without its observers.

    A scheme of the PT2E flow, in which the backend's annotation finds the operators.

    Attributes:
        weight: The format of weights; ``None`` where they stay in float. Given as ``weight_bits``:
            a :class:`qcore.formats.NumberFormat`, or bits, which mean symmetric integers.
        activation: The format of activations; ``None`` where they stay in float. Given as
            ``activation_bits``: a format, or bits, which mean integers.
        granularity: Whether a weight has one scale, one per output channel, or one per group;
            ``per_operator``: what the row of the support table says for each operator.
        is_dynamic: Whether activation ranges are measured at run time instead of by calibration.
        is_qat: Whether the configuration trains with fake quantization.
    """

    weight: NumberFormat | None = field(
        default=INT8_WEIGHTS, converter=_weights, alias="weight_bits"
    )
    activation: NumberFormat | None = field(
        default=INT8, converter=_activations, alias="activation_bits"
    )
    granularity: Granularity = "per_channel"
    is_dynamic: bool = False
    is_qat: bool = False

    @property
    def weight_bits(self) -> int | None:
        """Bits of a weight; ``None`` where weights stay in float."""
        return None if self.weight is None else self.weight.bits

    @property
    def activation_bits(self) -> int | None:
        """Bits of an activation; ``None`` where activations stay in float."""
        return None if self.activation is None else self.activation.bits

    @property
    def name(self) -> str:
        """The short name, as in ``8a8w`` (static), ``8da4w`` (dynamic), ``8w`` (weight-only)."""
        activation = self.activation and f"{self.activation.label}{'d' if self.is_dynamic else ''}a"
        return f"{activation or ''}{f'{self.weight.label}w' if self.weight else ''}"

    def __str__(self) -> str:
        if self.activation is None:
            kind = "weight-only"
        else:
            kind = "dynamic" if self.is_dynamic else "static"
        words = [self.name, kind, self.granularity.replace("_", "-")]
        if self.weight is not None and not self.weight.symmetric:
            words.append("asymmetric weights")
        if self.is_qat:
            words.append("QAT")
        return " ".join(words)

    def covers(self, other: QuantizationScheme) -> bool:
        """Say whether a backend that executes this scheme executes another one, too.

        Fewer levels in the same integer type, such as 4-bit weights stored as int8, are values
        that it can hold. Where granularity is ``per_operator``, annotation checks it by operator.

        Args:
            other: The scheme asked for.

        Returns:
            Whether it is this one, or a narrower one in the same types.
        """
        return (
            type(self) is type(other)
            and _holds(self.weight, other.weight)
            and _holds(self.activation, other.activation)
            and self.granularity in (other.granularity, "per_operator")
            and self.is_dynamic == other.is_dynamic
            and self.is_qat == other.is_qat
        )

    def is_meant_by(self, name: SchemeName) -> bool:
        """Say whether a name means this scheme; none means one that trains."""
        return (
            self.name == name.short
            and not self.is_qat
            and (name.granularity in (None, self.granularity) or self.granularity == "per_operator")
        )

    @classmethod
    def from_config(cls, config: QuantizationConfig) -> Self:
        """Read the scheme off a configuration.

        Args:
            config: Any configuration with torchao's qspecs.

        Returns:
            The scheme; two configurations that differ only in observers have the same one.
        """
        weight, activation = config.weight, config.input_activation
        granularity: Granularity = "per_tensor"
        if weight is not None and weight.qscheme in PER_CHANNEL:
            is_open = getattr(maker_of(weight), "is_per_operator", False)
            granularity = "per_operator" if is_open else "per_channel"
        return cls(
            NumberFormat.of(weight),
            NumberFormat.of(activation),
            granularity,
            is_dynamic=activation is not None and bool(activation.is_dynamic),
            is_qat=bool(config.is_qat),
        )

    def to_config(self) -> QuantizationConfig:
        """Build the default configuration of this scheme.

        Returns:
            A configuration with torchao's observers for the formats; the same (cached) object for
            equal schemes.

        Raises:
            UnsupportedSchemeError: No PT2E configuration can express the scheme.
        """
        if self.granularity == "per_group":
            raise UnsupportedSchemeError(
                f"No PT2E configuration expresses {self}: weights are quantized "
                "per tensor or per channel. Use 'per-tensor' or 'per-channel'."
            )
        return build_config(
            self.weight,
            self.activation,
            is_per_channel=self.granularity != "per_tensor",
            is_per_operator=self.granularity == "per_operator",
            is_qat=self.is_qat,
            is_dynamic=self.is_dynamic,
        )


@frozen
class IoScheme(QuantizationScheme):
    """What only ``set_io`` takes: formats of inputs and outputs, such as uint8."""

    def __str__(self) -> str:
        return f"{super().__str__()} (io)"


@frozen
class LayerScheme(QuantizationScheme):
    """What ``qcore.quantize_`` may do to one kind of layer for a backend.

    Attributes:
        layer: The kind of layer.
        group_multiple: A group size, and per channel the number of inputs of a channel, must be a
            multiple of this.
        output_multiple: The number of output channels must be a multiple of this.
        scale_dtype: The type that the backend keeps the scales of weights in. Weights are rounded
            with scales of that precision, so that the quantized model computes what the backend
            does.
    """

    layer: Layer = field(kw_only=True)
    group_multiple: int = field(default=1, kw_only=True)
    output_multiple: int = field(default=1, kw_only=True)
    scale_dtype: torch.dtype = field(default=torch.float32, kw_only=True)

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.layer})"

    def covers(self, other: QuantizationScheme) -> bool:
        """Say whether a backend with this scheme executes another one: each width has a kernel."""
        return (
            isinstance(other, LayerScheme)
            and self.layer == other.layer
            and self.weight_bits == other.weight_bits
            and super().covers(other)
        )

    def misfit(self, outputs: int, inputs: int, group_size: int | None, backend: str) -> str:
        """Say why a weight does not fit.

        Args:
            outputs: Rows of the weight.
            inputs: Columns of the weight.
            group_size: How many weights of a row share a scale; ``None`` for all of them.
            backend: The backend's name, for the message.

        Returns:
            The reason; empty if it fits.
        """
        takes = f"{backend} takes multiples of"
        if outputs % self.output_multiple:
            return f"{outputs} output channels, and {takes} {self.output_multiple}"
        if (group_size or inputs) % self.group_multiple:
            what = f"group size {group_size}" if group_size else f"{inputs} weights a row"
            return f"{what}, and {takes} {self.group_multiple}"
        if inputs % (group_size or inputs):
            return f"{inputs} weights a row, not divisible by {group_size}"
        return ""

    def to_config(self) -> QuantizationConfig:
        """Refuse: weights are quantized before capture."""
        raise UnsupportedSchemeError(
            f"{self} is a scheme of qcore.quantize_, which quantizes weights before capture; "
            "no PT2E configuration expresses it. Call qcore.quantize_(model, backend, "
            f"{self.name!r})."
        )


def _holds(stored: NumberFormat | None, wanted: NumberFormat | None) -> bool:
    if stored is None or wanted is None:
        return stored is wanted
    return stored.holds(wanted)


def parse_name(text: str, supported: Iterable[QuantizationScheme], backend: str) -> SchemeName:
    """Read the name of a scheme.

    Args:
        text: What a user wrote.
        supported: The schemes of the backend, for the message.
        backend: Its name.

    Returns:
        What the name says; the backend need not execute it.

    Raises:
        UnsupportedSchemeError: It is no name of a scheme.
    """
    name = SchemeName.parse(text)
    if name is not None:
        return name
    offered = tuple(supported)
    names = {s.name for s in offered}
    meant = names_elsewhere(text)
    close = [name for name in meant if name in names] or near_misses(text, names)
    if meant and names.isdisjoint(meant):
        called = " or ".join(map(repr, meant))
        hint = f" qcore calls it {called}, which {backend} does not execute in this flow."
    else:
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UnsupportedSchemeError(
        f"{text!r} is not a scheme's name. {backend} executes: {listed(offered)}.{hint}"
    )


def resolve_config(
    wanted: SchemeLike,
    supported: Sequence[QuantizationScheme],
    backend: str,
    source: Sequence[QuantizationScheme] = (),
) -> QuantizationConfig | None:
    """Turn what a user passed to a ``set_*`` method into a configuration.

    Args:
        wanted: A configuration, a scheme, a scheme's name such as ``"8a8w"`` or
            ``"8a8w per-tensor"``, or ``None``.
        supported: The schemes of the backend, the preferred ones first; a name that leaves
            something open means the first that fits.
        backend: The backend's name, for the message.
        source: Its schemes of ``qcore.quantize_``, to which a message may point.

    Returns:
        The configuration; ``None`` for ``None``.

    Raises:
        UnsupportedSchemeError: The name is unknown, or the backend does not execute the scheme.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return _named(wanted, supported, backend, source).to_config()
    if isinstance(wanted, QuantizationScheme):
        check_scheme(wanted, supported, backend)
        return wanted.to_config()
    if not isinstance(wanted, QuantizationConfig):
        raise UnsupportedSchemeError(
            f"Expected a quantization configuration, a scheme's name or None, "
            f"got {type(wanted).__name__} ({wanted!r}). "
            "Build one with qcore.get_symmetric_quantization_config(...)."
        )
    check_scheme(QuantizationScheme.from_config(wanted), supported, backend)
    return wanted


def _named(
    text: str,
    supported: Sequence[QuantizationScheme],
    backend: str,
    source: Sequence[QuantizationScheme],
) -> QuantizationScheme:
    name = parse_name(text, supported, backend)
    found = next((scheme for scheme in supported if scheme.is_meant_by(name)), None)
    if found is not None:
        return evolve(found, granularity=name.granularity or found.granularity)
    short = name.short
    if any(s.name == short for s in source) and not any(s.name == short for s in supported):
        raise UnsupportedSchemeError(
            f"{backend} executes {short} for models that qcore.quantize_ has treated, not in the "
            f"PT2E flow. There it executes: {listed(supported)}.\n"
            f"Call qcore.quantize_(model, {backend!r}, {short!r}) on the model before capture."
        )
    raise UnsupportedSchemeError(
        _refusal(str(name), name.weight, name.activation, supported, backend)
    )


def check_scheme(
    scheme: QuantizationScheme, supported: Iterable[QuantizationScheme], backend: str
) -> None:
    """Raise unless the backend executes a scheme.

    Args:
        scheme: What was asked for.
        supported: What the backend declares.
        backend: The backend's name, for the message.

    Raises:
        UnsupportedSchemeError: With what the backend executes instead.
    """
    offered = tuple(supported)
    if any(other.covers(scheme) for other in offered):
        return
    weight, activation = scheme.weight, scheme.activation
    refusal = _refusal(
        str(scheme),
        None if weight is None else weight.label,
        None if activation is None else activation.label,
        offered,
        backend,
    )
    namesake = next((other for other in offered if other.name == scheme.name), None)
    if namesake is not None:
        refusal += _other_numbers("activations", namesake.activation, activation)
        refusal += _other_numbers("weights", namesake.weight, weight)
    raise UnsupportedSchemeError(refusal)


def _other_numbers(what: str, wanted: NumberFormat | None, asked: NumberFormat | None) -> str:
    """Say how numbers of the same name differ; empty where they do not."""
    if asked is None or wanted is None or wanted.holds(asked):
        return ""
    return f"\nIts {what} are {wanted.words}; those of the configuration are {asked.words}."


def _refusal(
    asked: str,
    weight: str | None,
    activation: str | None,
    offered: Sequence[QuantizationScheme],
    backend: str,
) -> str:
    hint = "Pass one of these names or a configuration with the same bits and granularity."
    if weight is None:
        asked = "activation-only quantization (weights in float)"
        hint = "Pass a configuration with weight set."
    elif activation is None and all(s.activation for s in offered):
        kind = weight if weight[0].isalpha() else f"int{weight}"
        asked = f"weight-only quantization (weights {kind}, activations float)"
        hint = "Pass a configuration with input_activation set"
        hint += f", e.g. qcore.get_quantizer({backend!r}).set_global({offered[0].name!r})."
    return f"{backend} does not execute {asked}.\nIt executes: {listed(offered)}.\n{hint}"


def listed(schemes: Iterable[QuantizationScheme]) -> str:
    """Return schemes as one line for a message, each once."""
    # QAT is a way to train, not another thing to execute.
    return ", ".join(dict.fromkeys(str(evolve(s, is_qat=False)) for s in schemes))
