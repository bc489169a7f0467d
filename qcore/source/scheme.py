"""The schemes of ``quantize_``: what a user may write, and torchao's form of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from attrs import evolve, field, frozen

from qcore.compat.torchao import (
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
)
from qcore.errors import UnsupportedSchemeError
from qcore.grammar import SchemeName
from qcore.schemes import Layer, LayerScheme, listed, parse_name
from qcore.source.modules import layer_scheme

__all__ = ["GroupSize", "SourceScheme", "SourceSchemeLike", "check_group_size", "read_scheme"]

GroupSize: TypeAlias = int | Literal["axis"]
SourceSchemeLike: TypeAlias = (
    "SourceScheme | str | IntxWeightOnlyConfig | Int8DynamicActivationIntxWeightConfig | None"
)

# The group size of a name that leaves it open, on a backend that prefers groups: what torchao's
# Int8DynamicActivationIntxWeightConfig and recipes for language models use.
_GROUP: Final = 32

_CONFIGS: Final = (IntxWeightOnlyConfig, Int8DynamicActivationIntxWeightConfig)


@frozen
class SourceScheme:
    """How the weights of a layer are quantized before capture.

    Attributes:
        name: Such as ``8da4w``, ``8w``: bits of the activations, if they are quantized (at run
            time, a range for each token), and bits of the weights.
        group_size: How many weights of a row share a scale; ``"axis"`` for one scale a row, and
            ``None`` for what the backend prefers.
        config: A torchao configuration to use as it is, group size aside.
    """

    name: str
    group_size: GroupSize | None = None
    config: Any = field(default=None, repr=False, eq=str)

    def __attrs_post_init__(self) -> None:
        parsed = SchemeName.parse(self.name)
        if parsed is None or parsed.short != self.name or not parsed.weight.isdigit():
            raise UnsupportedSchemeError(
                f"{self.name!r} is not a scheme's name. Write bits, as in '8da4w' or '8w', and the "
                "group size beside it: SourceScheme('4w', 32)."
            )
        if self.group_size is not None:
            check_group_size(self.group_size, "group_size")

    def __str__(self) -> str:
        if self.group_size is None:
            return self.name
        if self.group_size == "axis":
            return f"{self.name} per-axis"
        return f"{self.name} per-group {self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        parsed = SchemeName.parse(self.name)
        assert parsed is not None
        return int(parsed.weight)

    @property
    def is_dynamic(self) -> bool:
        """Whether activations are quantized at run time."""
        return "d" in self.name

    @property
    def is_symmetric(self) -> bool:
        """Whether weights have no zero points."""
        return _mapping(self.config) is not MappingType.ASYMMETRIC

    def for_layer(self, layer: Layer) -> LayerScheme:
        """Return the scheme as a backend declares it.

        Args:
            layer: The kind of layer.

        Returns:
            Per group, where the group size is open.
        """
        return layer_scheme(
            layer,
            self.weight_bits,
            "per_channel" if self.group_size == "axis" else "per_group",
            is_dynamic=self.is_dynamic,
            symmetric=self.is_symmetric,
        )

    def preferred_on(self, layer: Layer, supported: Sequence[LayerScheme]) -> SourceScheme:
        """Fill in an open group size.

        Args:
            layer: The kind of layer.
            supported: The backend's schemes, the preferred ones first.

        Returns:
            The scheme with the granularity of the first declared scheme of this name.
        """
        if self.group_size is not None:
            return self
        for scheme in supported:
            if scheme.layer == layer and scheme.name == self.name:
                if scheme.granularity == "per_channel":
                    return evolve(self, group_size="axis")
                return evolve(self, group_size=max(_GROUP, scheme.group_multiple))
        return self

    def torchao_config(self) -> Any:
        """Return the torchao configuration; the group size must be set."""
        granularity = (
            PerAxis(0) if not isinstance(self.group_size, int) else PerGroup(self.group_size)
        )
        key = "weight_granularity" if self.is_dynamic else "granularity"
        if self.config is not None:
            return dataclasses.replace(self.config, **{key: granularity})
        cls = Int8DynamicActivationIntxWeightConfig if self.is_dynamic else IntxWeightOnlyConfig
        return cls(weight_dtype=getattr(torch, f"int{self.weight_bits}"), **{key: granularity})


def check_group_size(value: object, argument: str) -> None:
    """Raise UnsupportedSchemeError unless a value is a positive integer or ``axis``."""
    if value == "axis" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return
    raise UnsupportedSchemeError(
        f"{argument}={value!r} is no group size. Pass how many weights share a scale, such as 32, "
        "or 'axis' for one scale a row."
    )


def read_scheme(
    wanted: SourceSchemeLike, supported: Sequence[LayerScheme], backend: str
) -> SourceScheme | None:
    """Read what a user passed as a scheme; ``None`` leaves layers as they are.

    UnsupportedSchemeError where it is no scheme, or the backend executes none of that name.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        parsed = parse_name(wanted, supported, backend)
        asked, name = str(parsed), parsed.short
    else:
        scheme = wanted if isinstance(wanted, SourceScheme) else _from_config(wanted)
        asked, name = str(scheme), scheme.name
    if not any(declared.name == name for declared in supported):
        raise UnsupportedSchemeError(_refusal(asked, supported, backend))
    if not isinstance(wanted, str):
        return scheme
    if parsed.granularity == "per_tensor":
        raise UnsupportedSchemeError(_refusal(asked, supported, backend))
    return SourceScheme(name, "axis" if parsed.granularity == "per_channel" else parsed.group_size)


def _from_config(config: Any) -> SourceScheme:
    if not isinstance(config, _CONFIGS):
        raise UnsupportedSchemeError(
            f"Expected a scheme for quantize_, got {type(config).__name__} ({config!r}). Pass a "
            "name such as '8da4w', a qcore.SourceScheme, or one of torchao's "
            f"{' and '.join(config.__name__ for config in _CONFIGS)}."
        )
    dynamic = isinstance(config, Int8DynamicActivationIntxWeightConfig)
    packing = getattr(config.intx_packing_format, "value", config.intx_packing_format)
    if packing != "unpacked_to_int8":
        raise UnsupportedSchemeError(
            f"{type(config).__name__} asks for intx_packing_format={packing!r}, which runs in "
            "eager mode only. For export leave it at 'unpacked_to_int8'."
        )
    if dynamic and config.act_mapping_type is not MappingType.ASYMMETRIC:
        raise UnsupportedSchemeError(
            f"{type(config).__name__} asks for symmetric activations, which torchao does not "
            "implement. Leave act_mapping_type at MappingType.ASYMMETRIC."
        )
    bits = int(str(config.weight_dtype).removeprefix("torch.int"))
    name = f"{'8da' if dynamic else ''}{bits}w"
    granularity = config.weight_granularity if dynamic else config.granularity
    group: GroupSize = granularity.group_size if isinstance(granularity, PerGroup) else "axis"
    return SourceScheme(name, group, config)


def _mapping(config: Any) -> Any:
    return getattr(config, "weight_mapping_type", getattr(config, "mapping_type", None))


def _refusal(asked: str, supported: Sequence[LayerScheme], backend: str) -> str:
    if not supported:
        return (
            f"{backend} executes no model that quantize_ has treated: {asked} is not possible. "
            "Quantize it with qcore.quantize(model, quantizer, samples) instead."
        )
    layers = {declared.layer for declared in supported}
    embeddings = "" if "embedding" in layers else " It has no quantized embedding."
    return (
        f"{backend} does not execute {asked}.\n"
        f"It executes: {listed(supported)}.{embeddings}\n"
        "Pass one of these names. The schemes of the PT2E flow are others: "
        f"qcore.get_quantizer({backend!r}).supported_schemes."
    )
