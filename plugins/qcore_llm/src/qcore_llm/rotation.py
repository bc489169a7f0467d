"""Turning the values that run through a model, so that no channel is far larger than the others.

Blocks add to one stream of values, and read it through norms that only divide by its length. So the
stream may be turned by any orthogonal matrix that the layers around it take up: it is the same
function, but what layers read, and their weights, are mixtures of all channels, without outliers.
Four bits for a group of weights and eight for a token's activations then lose less.

Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", NeurIPS 2024,
section 4, stage 1a. Nothing is turned at run time but the input of a head that shares the
embedding's weight, which cannot take up the weight of the norm before it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch
from attrs import frozen
from torch import nn

from qcore.source import is_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["rotate", "turned"]

#: The norms of a block, and the part of it that each feeds.
_FED: Final = {"input_layernorm": "self_attn", "post_attention_layernorm": "mlp"}

#: The layers that write to the stream; all others of these parts read it.
_WRITING: Final = frozenset({"o_proj", "down_proj"})

#: Tokens with which turned blocks are compared, and how far they may be, relative to the outputs.
_PROBE: Final = 8
_CLOSE: Final = 1e-3

#: Rows of a weight that are turned together.
_ROWS: Final = 256


class _Unfit(Exception):
    """A model is not made of blocks that read and write one stream through norms."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def rotate(model: PreTrainedModel) -> str:
    """Turn a model's stream, in place.

    The function stays the same, up to rounding; weights of norms become 1.

    Args:
        model: The float model.

    Returns:
        Nothing; or why the model cannot be turned, with the model as it was, up to rounding.
    """
    try:
        base = model.base_model
        blocks = [_Block.of(layer) for layer in base.layers]
        norms = [norm for block in blocks for norm, _ in block.read] + [base.norm]
        layers = [layer for block in blocks for layer in block.layers]
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        _check(norms, [embedding, head, *layers])
    except (AttributeError, _Unfit) as error:
        return f"{type(model).__name__} is not turned: {error}"
    calls = _calls(model, list(base.layers))
    for index, (block, layer) in enumerate(zip(blocks, base.layers, strict=True)):
        gains = block.turn()
        if not _does_the_same(layer, *calls[index]):
            for done in blocks[: index + 1]:
                done.turn()  # It is its own inverse.
            block.give_back(gains)
            return f"{type(model).__name__} is not turned: {type(layer).__name__} computes more"
    is_tied = head.weight is embedding.weight
    gain = _taken(base.norm)
    _turn(embedding.weight)
    if is_tied:
        base.norm.register_buffer("mixing", turned(turned(gain.diag()).T))
        base.norm.register_forward_hook(_mixed)
    else:
        _turn(head.weight, gain)
    return ""


def _turn(weight: torch.Tensor, gain: torch.Tensor | float = 1.0) -> None:
    for rows in weight.split(_ROWS):
        rows.copy_(turned(rows * gain))


def _mixed(norm: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    del inputs
    return nn.functional.linear(output, norm.mixing)


@frozen(eq=False)
class _Block:
    """What a block does with the stream.

    Attributes:
        read: Each norm, and the layers that it feeds.
        written: The layers whose outputs are added to the stream.
    """

    read: tuple[tuple[nn.Module, tuple[nn.Linear, ...]], ...]
    written: tuple[nn.Linear, ...]

    @classmethod
    def of(cls, layer: nn.Module) -> _Block:
        """Look at a block; raise an error for one of other parts."""
        own = {name for name, part in layer.named_children() if list(part.parameters())}
        if own != {*_FED, *_FED.values()}:
            raise _Unfit(f"{type(layer).__name__} has the parts {', '.join(sorted(own))}")
        read, written = [], []
        for norm, fed in _FED.items():
            inside = dict(layer.get_submodule(fed).named_children())
            linear = {name: part for name, part in inside.items() if isinstance(part, nn.Linear)}
            written += [part for name, part in linear.items() if name in _WRITING]
            reading = tuple(part for name, part in linear.items() if name not in _WRITING)
            read.append((layer.get_submodule(norm), reading))
        return cls(tuple(read), tuple(written))

    @property
    def layers(self) -> list[nn.Linear]:
        """The layers that read or write the stream."""
        return [layer for _, fed in self.read for layer in fed] + list(self.written)

    def turn(self) -> list[torch.Tensor]:
        """Let the block read and write a turned stream; return what its norms multiplied with."""
        gains = [_taken(norm) for norm, _ in self.read]
        for (_, layers), gain in zip(self.read, gains, strict=True):
            for layer in layers:
                _turn(layer.weight, gain)
        for layer in self.written:
            _turn(layer.weight.T)
            if layer.bias is not None:
                _turn(layer.bias[None])
        return gains

    def give_back(self, gains: list[torch.Tensor]) -> None:
        """Let the norms multiply again, and not the layers that they feed."""
        for (norm, layers), gain in zip(self.read, gains, strict=True):
            norm.weight += gain - 1
            for layer in layers:
                layer.weight /= gain


def _check(norms: list[nn.Module], layers: list[nn.Module]) -> None:
    for layer in layers:
        if is_quantized(layer) or layer.weight.dtype != torch.float32:
            raise _Unfit("not all of its weights are in float32")
    if getattr(layers[1], "bias", None) is not None:
        raise _Unfit("its head has a bias")
    x = torch.randn(4, layers[0].weight.shape[1], generator=torch.Generator().manual_seed(0))
    for norm in norms:
        gain = _gain(norm)
        if not torch.allclose(norm(turned(x)) / gain, turned(norm(x) / gain), atol=_CLOSE):
            raise _Unfit(f"{type(norm).__name__} does more than divide by a length")


def _gain(norm: Any) -> torch.Tensor:
    """Return what a norm multiplies each channel with; some add 1 to their weight."""
    gain: torch.Tensor = norm(torch.ones_like(norm.weight))
    return gain


def _taken(norm: Any) -> torch.Tensor:
    """Return what a norm multiplies each channel with, and let it multiply with 1."""
    gain = _gain(norm)
    norm.weight += 1 - gain
    return gain


def _calls(model: PreTrainedModel, layers: list[nn.Module]) -> list[tuple[Any, Any, torch.Tensor]]:
    """Return what each block gets and returns when the model reads a few tokens."""
    found: list[tuple[Any, Any, torch.Tensor]] = []

    def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append((args, kwargs, _first(output)))

    vocabulary = model.config.get_text_config().vocab_size
    # A prime step, so that the tokens differ.
    tokens = (torch.arange(_PROBE) * 7919 % vocabulary)[None]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(note, with_kwargs=True))
        model(input_ids=tokens, use_cache=False)
    return found


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _does_the_same(layer: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> bool:
    (stream, *others) = args
    found = turned(_first(layer(turned(stream), *others, **kwargs)))
    return bool((found - output).norm() <= _CLOSE * output.norm())


def turned(x: torch.Tensor) -> torch.Tensor:
    """Multiply by an orthogonal, symmetric matrix, which is its own inverse and mixes all channels.

    It is the Kronecker product of a Hartley matrix, of an odd size, and a Hadamard matrix, with the
    signs of channels drawn, before and after. Sums are taken in one order, whatever the threads, so
    that a turned weight is the same to the bit.

    Args:
        x: (..., channels), float32.

    Returns:
        The same shape.
    """
    size = x.shape[-1]
    power = size & -size
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(size)) * 2.0 - 1
    parts = (x * signs).unflatten(-1, (size // power, power))
    width = 1
    while width < power:
        pairs = parts.unflatten(-1, (-1, 2, width))
        first, second = pairs.unbind(-2)
        parts = torch.stack((first + second, first - second), -2).flatten(-3)
        width *= 2
    odd = torch.arange(size // power).double()
    angles = odd.outer(odd) * (2 * math.pi / len(odd))
    hartley = ((angles.cos() + angles.sin()) / math.sqrt(size)).float()
    mixed = torch.zeros_like(parts)
    for row, column in zip(hartley.unbind(), parts.unbind(-2), strict=True):
        mixed += row.unsqueeze(1) * column.unsqueeze(-2)
    return mixed.flatten(-2) * signs
