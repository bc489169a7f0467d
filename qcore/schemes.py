"""Quantization schemes as data, and what a scheme's name means for a backend.

A *configuration* is torchao's ``QuantizationConfig``: the qspecs (with their observers) for
activations, weights and bias. A *scheme* is what remains of it when the observers are left out:
bit widths, granularity, static or dynamic. Backends declare schemes; users pass configurations or a
scheme's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from attrs import evolve, frozen

from qcore.compat.torchao import QuantizationConfig, QuantizationSpec
from qcore.configs import SMALLEST_SCALE, get_symmetric_quantization_config
from qcore.errors import UnsupportedSchemeError, near_misses

__all__ = [
    "PER_CHANNEL",
    "QuantizationConfig",
    "QuantizationScheme",
    "QuantizationSpec",
    "SchemeLike",
    "check_scheme",
    "get_symmetric_quantization_config",
    "listed",
    "require_pt2e_scheme",
    "resolve_config",
]

Granularity = Literal["per_tensor", "per_channel", "per_group"]
Layer = Literal["linear", "embedding", "io"]

SchemeLike: TypeAlias = "QuantizationConfig | QuantizationScheme | str | None"

PER_CHANNEL: Final = (torch.per_channel_symmetric, torch.per_channel_affine)
_SYMMETRIC: Final = (torch.per_tensor_symmetric, torch.per_channel_symmetric)

_NAME: Final = re.compile(
    r"(?:(?P<act>\d+|f)(?P<dynamic>d?)a)?(?P<weight>\d+)w"
    r"(?:[ -](?P<kind>static|dynamic))?"
    r"(?:[ -](?P<granularity>per[-_](?:tensor|channel|group)))?"
)


@frozen
class QuantizationScheme:
    """What is quantized to how many bits, and how finely: a configuration without its observers.

    Attributes:
        weight_bits: Bits of a weight, from the number of levels between ``quant_min`` and
            ``quant_max``; ``None`` where weights stay in float.
        activation_bits: Bits of an activation; ``None`` where activations stay in float.
        granularity: Whether a weight has one scale, one per output channel, or one per group.
        is_dynamic: Whether activation ranges are measured at run time instead of by calibration.
        is_qat: Whether the configuration trains with fake quantization.
        symmetric_weights: Whether weights have a zero point of 0.
        layer: The kind of layer whose weights ``qcore.quantize_`` gives this scheme; ``None`` for
            a scheme of the PT2E flow, in which the backend's annotation finds the operators;
            ``"io"`` for what only ``set_io`` takes, such as uint8 inputs.
        group_multiple: With ``layer``: a group size, and per channel the number of inputs of a
            channel, must be a multiple of this.
        output_multiple: With ``layer``: the number of output channels must be a multiple of this.
        scale_dtype: With ``layer``: the type that the backend keeps the scales of weights in.
            Weights are rounded with scales of that precision, so that the quantized model computes
            what the backend does.
        smallest_scale: The smallest scale that observers may return.
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    granularity: Granularity = "per_channel"
    is_dynamic: bool = False
    is_qat: bool = False
    symmetric_weights: bool = True
    layer: Layer | None = None
    group_multiple: int = 1
    output_multiple: int = 1
    scale_dtype: torch.dtype = torch.float32
    smallest_scale: float = SMALLEST_SCALE

    @property
    def is_source(self) -> bool:
        """Whether this is a scheme of ``qcore.quantize_``."""
        return self.layer in ("linear", "embedding")

    @property
    def name(self) -> str:
        """The short name, as in ``8a8w`` (static), ``8da4w`` (dynamic), ``8w`` (weight-only)."""
        activation = ""
        if self.activation_bits is not None:
            activation = f"{self.activation_bits}{'d' if self.is_dynamic else ''}a"
        return f"{activation}{self.weight_bits}w" if self.weight_bits else activation

    def __str__(self) -> str:
        if self.activation_bits is None:
            kind = "weight-only"
        else:
            kind = "dynamic" if self.is_dynamic else "static"
        words = [self.name, kind, self.granularity.replace("_", "-")]
        if not self.symmetric_weights:
            words.append("asymmetric weights")
        if self.is_qat:
            words.append("QAT")
        if self.layer is not None:
            words.append(f"({self.layer})")
        return " ".join(words)

    def covers(self, other: QuantizationScheme) -> bool:
        """Say whether a backend that executes this scheme executes another one, too.

        Fewer levels in the same integer type, such as 4-bit weights stored as int8, are values
        that it can hold. Not so with ``layer``: there every width has a kernel of its own.

        Args:
            other: The scheme asked for.

        Returns:
            Whether it is this one, or a narrower one in the same types.
        """
        if self.layer is not None and self.weight_bits != other.weight_bits:
            return False
        return (
            self.layer == other.layer
            and _holds(self.weight_bits, other.weight_bits)
            and _holds(self.activation_bits, other.activation_bits)
            and self.granularity == other.granularity
            and self.is_dynamic == other.is_dynamic
            and self.is_qat == other.is_qat
            and self.symmetric_weights == other.symmetric_weights
        )

    @classmethod
    def from_config(cls, config: QuantizationConfig) -> QuantizationScheme:
        """Read the scheme off a configuration.

        Args:
            config: Any configuration with torchao's qspecs.

        Returns:
            The scheme; two configurations that differ only in observers have the same one.
        """
        weight, activation = config.weight, config.input_activation
        per_channel = weight is not None and weight.qscheme in PER_CHANNEL
        return cls(
            weight_bits=_bits(weight),
            activation_bits=_bits(activation),
            granularity="per_channel" if per_channel else "per_tensor",
            is_dynamic=activation is not None and bool(activation.is_dynamic),
            is_qat=bool(config.is_qat),
            symmetric_weights=weight is None or weight.qscheme in (*_SYMMETRIC, None),
        )

    def to_config(self) -> QuantizationConfig:
        """Build the default configuration of this scheme.

        Returns:
            A configuration with the observers that :func:`get_symmetric_quantization_config`
            chooses.

        Raises:
            UnsupportedSchemeError: No PT2E configuration can express the scheme.
        """
        if self.layer is not None:
            raise UnsupportedSchemeError(
                f"{self} is a scheme of qcore.quantize_, which quantizes weights before capture; "
                "no PT2E configuration expresses it. Call qcore.quantize_(model, backend, "
                f"{self.name!r})."
            )
        if self.granularity == "per_group" or not self.symmetric_weights:
            raise UnsupportedSchemeError(
                f"No PT2E configuration expresses {self}: weights are symmetric, "
                "per tensor or per channel. Use 'per-tensor' or 'per-channel'."
            )
        weight_limit = 2 ** ((self.weight_bits or 8) - 1) - 1
        config = get_symmetric_quantization_config(
            is_per_channel=self.granularity == "per_channel",
            is_qat=self.is_qat,
            is_dynamic=self.is_dynamic,
            weight_qmin=-weight_limit,
            weight_qmax=weight_limit,
            eps=self.smallest_scale,
            **_activation_range(self.activation_bits),
        )
        if self.activation_bits is None:
            return QuantizationConfig(None, None, config.weight, None, self.is_qat)
        return config


def _holds(stored: int | None, wanted: int | None) -> bool:
    if stored is None or wanted is None:
        return stored is wanted
    return wanted <= stored and (wanted <= 8) == (stored <= 8)


def _bits(spec: QuantizationSpec | None) -> int | None:
    if spec is None:
        return None
    if spec.quant_min is not None and spec.quant_max is not None:
        return int(spec.quant_max - spec.quant_min).bit_length()
    return int(torch.iinfo(spec.dtype).bits)


def _activation_range(bits: int | None) -> dict[str, Any]:
    bits = bits or 8
    dtype = torch.int8 if bits <= 8 else torch.int16
    return {
        "act_qmin": -(2 ** (bits - 1)) + (dtype is torch.int16),
        "act_qmax": 2 ** (bits - 1) - 1,
        "act_dtype": dtype,
    }


def resolve_config(
    wanted: SchemeLike, supported: Sequence[QuantizationScheme], backend: str
) -> QuantizationConfig | None:
    """Turn what a user passed to a ``set_*`` method into a configuration.

    Args:
        wanted: A configuration, a scheme, a scheme's name such as ``"8a8w"`` or
            ``"8a8w per-tensor"``, or ``None``.
        supported: The schemes of the backend, the preferred ones first; a name that leaves
            something open means the first that fits.
        backend: The backend's name, for the message.

    Returns:
        The configuration; ``None`` for ``None``.

    Raises:
        UnsupportedSchemeError: The name is unknown, or the backend does not execute the scheme.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return _scheme_by_name(wanted, supported, backend).to_config()
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


def require_pt2e_scheme(
    name: str,
    supported: Sequence[QuantizationScheme],
    source: Sequence[QuantizationScheme],
    backend: str,
) -> None:
    """Raise for a scheme's name that only ``qcore.quantize_`` takes on this backend.

    Args:
        name: What was asked for.
        supported: The backend's schemes of the PT2E flow.
        source: Its schemes of source quantization.
        backend: Its name, for the message.

    Raises:
        UnsupportedSchemeError: With the call to make instead.
    """
    short = name.strip().lower().split(" ")[0]
    if any(s.name == short for s in source) and not any(s.name == short for s in supported):
        raise UnsupportedSchemeError(
            f"{backend} executes {short} for models that qcore.quantize_ has treated, not in the "
            f"PT2E flow. There it executes: {listed(supported)}.\n"
            f"Call qcore.quantize_(model, {backend!r}, {short!r}) on the model before capture."
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
    raise UnsupportedSchemeError(_refusal(scheme, offered, backend))


def _refusal(
    scheme: QuantizationScheme, offered: Sequence[QuantizationScheme], backend: str
) -> str:
    if scheme.weight_bits is None:
        what = f"{backend} does not execute activation-only quantization (weights in float)."
        hint = "Pass a configuration with weight set."
    elif scheme.activation_bits is None and all(s.activation_bits for s in offered):
        what = (
            f"{backend} does not execute weight-only quantization "
            f"(weights int{scheme.weight_bits}, activations float)."
        )
        hint = "Pass a configuration with input_activation set"
        hint += f", e.g. qcore.get_quantizer({backend!r}).set_global({offered[0].name!r})."
    else:
        what = f"{backend} does not execute {scheme}."
        hint = "Pass one of these names or a configuration with the same bits and granularity."
    return f"{what}\nIt executes: {listed(offered)}.\n{hint}"


def listed(schemes: Iterable[QuantizationScheme]) -> str:
    """Return schemes as one line for a message, each once."""
    # QAT is a way to train, not another thing to execute.
    return ", ".join(dict.fromkeys(str(evolve(s, is_qat=False)) for s in schemes))


def _scheme_by_name(
    name: str, supported: Sequence[QuantizationScheme], backend: str
) -> QuantizationScheme:
    parsed = _NAME.fullmatch(name.strip().lower())
    if parsed is None:
        close = near_misses(name, {s.name for s in supported})
        raise UnsupportedSchemeError(
            f"{name!r} is not a scheme's name. {backend} executes: {listed(supported)}."
            + (f" Did you mean {', '.join(map(repr, close))}?" if close else "")
        )
    act, weight = parsed["act"], int(parsed["weight"])
    dynamic = bool(parsed["dynamic"]) or parsed["kind"] == "dynamic"
    granularity = (parsed["granularity"] or "").replace("-", "_") or None
    wanted = {
        "activation_bits": None if act in (None, "f") else int(act),
        "weight_bits": weight,
        "is_dynamic": dynamic,
    }
    for scheme in supported:
        if scheme.is_qat or (granularity and scheme.granularity != granularity):
            continue
        if all(getattr(scheme, key) == value for key, value in wanted.items()):
            return scheme
    asked = QuantizationScheme(granularity=granularity or "per_channel", **wanted)  # type: ignore[arg-type]
    raise UnsupportedSchemeError(_refusal(asked, supported, backend))
