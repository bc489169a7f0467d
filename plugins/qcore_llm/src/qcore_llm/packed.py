"""Weights that a checkpoint holds as packed integers: the layouts of GPTQ, AWQ, compressed-tensors.

A word of 32 bits holds eight integers of 4 bits, or four of 8, the first in its lowest bits. A
layer is a few tensors under its name:

- ``gptq``: ``qweight`` (inputs / 8, outputs), ``qzeros`` (groups, outputs / 8), ``scales`` (groups,
  outputs), ``g_idx`` (inputs), the group of each input. A weight is scale * (integer - zero). The
  first form of the layout stores zeros less 1.
- ``awq``, version ``gemm``: ``qweight`` (inputs, outputs / 8), ``qzeros`` and ``scales`` as above.
  The integers of a word are those of outputs 0, 2, 4, 6, 1, 3, 5, 7.
- ``compressed-tensors``, format ``pack-quantized``: ``weight_packed`` (outputs, inputs / 8),
  ``weight_scale`` (outputs, groups), ``weight_shape``, and ``weight_zero_point`` (outputs / 8,
  groups) and ``weight_g_idx``, if any. Integers and zeros are stored plus 8.

Sources: ``WQLinear_GEMM`` of AutoAWQ, ``pack_original`` of GPTQModel, ``pack_to_int32`` of
compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch
from attrs import frozen

from qcore.errors import UnsupportedSchemeError
from qcore.source import quantized_weight
from qcore_llm.errors import LanguageModelError

__all__ = ["METHODS", "take_packed_weights"]

_WORD: Final = 32

#: What to do about a checkpoint that has no form here.
_STEP: Final = "Start from the float model that the checkpoint was made of."

#: Position in a word of AWQ's -> output.
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)

#: The tensors of one layer, by the end of their names.
Parts: TypeAlias = Mapping[str, torch.Tensor]


@frozen
class _Unpacked:
    """Integers (outputs, inputs), zeros and scales (outputs, groups)."""

    integers: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    bits: int


def take_packed_weights(
    tensors: dict[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Read the packed weights of a checkpoint, and take their tensors out of it.

    Args:
        tensors: The checkpoint's tensors by name; those of packed weights are removed.
        config: The ``quantization_config`` of its ``config.json``, of one of :data:`METHODS`.

    Returns:
        By the layer's name, its weight with the integers and scales of the checkpoint, as
        ``qcore.quantize_`` takes it.

    Raises:
        LanguageModelError: A tensor is missing, or its integers, groups or zero points have no such
            form; it names the tensor.
    """
    layout = METHODS[config["quant_method"]]
    found = str(next((config[key] for key in layout.keys if config.get(key)), layout.forms[0]))
    if found.lower() not in layout.forms:
        raise LanguageModelError(
            f"The checkpoint is of {config['quant_method']} in the format {found!r}; "
            f"{' and '.join(layout.forms)} can be read. {_STEP}"
        )
    names = [name.removesuffix(layout.mark) for name in tensors if name.endswith(layout.mark)]
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        parts = {
            end: tensors.pop(f"{name}.{end}") for end in layout.ends if f"{name}.{end}" in tensors
        }
        try:
            weights[name] = _weight(layout.unpack(parts, config), parts.get(layout.order))
        except UnsupportedSchemeError as error:
            raise LanguageModelError(f"{name}{layout.mark}: {error}") from error
        except KeyError as error:
            raise LanguageModelError(
                f"{name} has no tensor {error.args[0]}. The checkpoint is not complete."
            ) from error
    return weights


def _weight(found: _Unpacked, order: torch.Tensor | None) -> torch.Tensor:
    inputs, groups = found.integers.shape[1], found.scales.shape[1]
    if inputs % groups:
        raise UnsupportedSchemeError(f"{groups} groups do not divide {inputs} inputs. {_STEP}")
    group = inputs // groups
    # Where no order was chosen all places may be -1.
    if (
        order is not None
        and not bool((order == -1).all())
        and not torch.equal(order.long(), torch.arange(inputs) // group)
    ):
        raise UnsupportedSchemeError(
            f"the inputs of a group do not lie together (desc_act). {_STEP}"
        )
    values = found.integers.unflatten(1, (groups, group)) - found.zeros.unsqueeze(-1)
    return quantized_weight(
        values.flatten(1).contiguous(), found.scales.float().contiguous(), found.bits
    )


def _words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the integers of words, which lie along the last dimension, from 0."""
    if bits not in (2, 4, 8) or words.dtype != torch.int32:
        raise UnsupportedSchemeError(
            f"{bits} bits in words of {words.dtype}; 2, 4 and 8 in int32 can be read. {_STEP}"
        )
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts & (1 << bits) - 1).flatten(-2).to(torch.int16)


def _gptq(parts: Parts, config: Mapping[str, Any]) -> _Unpacked:
    # Single layers may have other bits than the configuration says.
    inputs = len(parts["g_idx"]) if "g_idx" in parts else 0
    bits = len(parts["qweight"]) * _WORD // inputs if inputs else int(config["bits"])
    less = 0 if config.get("checkpoint_format", config.get("format")) == "gptq_v2" else 1
    integers = _words(parts["qweight"].T, bits)
    zeros = _words(parts["qzeros"], bits).T + less
    return _Unpacked(integers, zeros, parts["scales"].T, bits)


def _awq(parts: Parts, config: Mapping[str, Any]) -> _Unpacked:
    bits = int(config["bits"])
    places = torch.tensor(_AWQ_ORDER).argsort()

    def outputs_first(words: torch.Tensor) -> torch.Tensor:
        return _words(words, bits).unflatten(-1, (-1, len(places)))[..., places].flatten(-2).T

    integers, zeros = outputs_first(parts["qweight"]), outputs_first(parts["qzeros"])
    return _Unpacked(integers, zeros, parts["scales"].T, bits)


def _compressed(parts: Parts, config: Mapping[str, Any]) -> _Unpacked:
    outputs, inputs = (int(size) for size in parts["weight_shape"])
    packed, scales = parts["weight_packed"], parts["weight_scale"].reshape(outputs, -1)
    bits = packed.shape[1] * _WORD // inputs
    zeros = torch.full_like(scales, 1 << bits - 1, dtype=torch.int16)
    if "weight_zero_point" in parts:
        zeros = _words(parts["weight_zero_point"].T, bits)[:, :outputs].T
    return _Unpacked(_words(packed, bits)[:, :inputs], zeros, scales, bits)


@frozen
class _Layout:
    """How a method stores layers.

    Attributes:
        unpack: Reads the tensors of a layer.
        mark: The end of the name of the tensor that every packed layer has.
        ends: The ends of the names of all its tensors.
        order: Of these, the one with the group of each input.
        keys: The keys of the configuration that may hold the format.
        forms: The formats that can be read; the first where none is given.
    """

    unpack: Callable[[Parts, Mapping[str, Any]], _Unpacked]
    mark: str
    ends: tuple[str, ...]
    order: str
    keys: tuple[str, ...]
    forms: tuple[str, ...]


_ENDS: Final = ("qweight", "qzeros", "scales", "g_idx")

#: The layouts that can be read, by the name of the method in the configuration.
METHODS: Final = {
    "gptq": _Layout(
        _gptq, ".qweight", _ENDS, "g_idx", ("checkpoint_format", "format"), ("gptq", "gptq_v2")
    ),
    "awq": _Layout(_awq, ".qweight", _ENDS, "g_idx", ("version", "format"), ("gemm",)),
    "compressed-tensors": _Layout(
        _compressed,
        ".weight_packed",
        ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
        "weight_g_idx",
        ("format",),
        ("pack-quantized",),
    ),
}
