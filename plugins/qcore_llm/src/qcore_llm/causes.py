"""Which module of a model is the cause, where a model is refused: as its path and its class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from qcore_llm.errors import LanguageModelError

__all__ = ["differing_module", "keeper_of", "naming_errors", "place_of"]


def place_of(model: nn.Module, module: nn.Module | None) -> str:
    """Return where a module is in a model, and its class: ``"model.layers.0 (MambaBlock)"``."""
    name = next((name for name, one in model.named_modules() if one is module), "")
    return f"{name or 'the model'} ({type(module if name else model).__name__})"


def keeper_of(model: nn.Module, layer: int) -> str:
    """Return the place of what keeps the state of one of a model's layers.

    Args:
        model: A model of transformers, whose modules with a cache know the number of their layer.
        layer: Number of the layer.

    Returns:
        The place of the innermost such module, or of the layer where none knows its number.
    """
    layers = model.config.get_text_config().num_hidden_layers
    rows = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not rows:
        return place_of(model, None)
    inside = [m for m in rows[0][layer].modules() if getattr(m, "layer_idx", None) == layer]
    return place_of(model, inside[-1] if inside else rows[0][layer])


@contextmanager
def naming_errors(model: nn.Module) -> Iterator[None]:
    """Give an error inside the model the name of the module that raised it."""
    inside: list[nn.Module] = []
    handles = []

    def left(*_: Any) -> None:
        inside.pop()

    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda one, _: inside.append(one)))
        handles.append(module.register_forward_hook(left))
    try:
        yield
    except Exception as error:
        place = place_of(model, inside[-1] if inside else model)
        raise LanguageModelError(
            f"{type(model).__name__} cannot be decoded with a cache: {place} raised "
            f"{type(error).__name__}: {str(error).rstrip('.')}. It is of a kind that this "
            "release does not know."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def differing_module(
    model: nn.Module, whole: Callable[[], Any], parts: Callable[[], Any], limit: float
) -> str:
    """Return the place of the innermost module that makes something else of the same input.

    Args:
        model: The model.
        whole: Reads a text with the model at once.
        parts: Reads it piece by piece.
        limit: What a module's outputs differ by at least, relative to them, and its inputs at most.

    Returns:
        The place of the first such module; of the model where there is none.
    """
    expected, found = (_values(model, run) for run in (whole, parts))
    for module, pairs in expected.items():
        came, went = (
            _distance(*sides) for sides in zip(pairs, found.get(module, pairs), strict=True)
        )
        if came <= limit < went:
            return place_of(model, module)
    return place_of(model, None)


#: Module -> what it got and what it returned, in the order in which they ended.
_Values = dict[nn.Module, tuple[list[torch.Tensor], list[torch.Tensor]]]


def _values(model: nn.Module, run: Callable[[], Any]) -> _Values:
    seen: _Values = defaultdict(lambda: ([], []))

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for values, side in zip(((args, kwargs), output), seen[module], strict=True):
            # What a module works on is its first tensor; what others there are say where and how.
            side.extend([x for x in tree_leaves(values) if isinstance(x, torch.Tensor)][:1])

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return dict(seen)


def _distance(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Return how far pieces are from the whole; 0 where they are no pieces of it."""
    try:
        exact, other = torch.cat(expected, 1).float(), torch.cat(found, 1).float()
    except (RuntimeError, IndexError):
        return 0.0
    if exact.shape != other.shape:
        return 0.0
    return float((other - exact).norm() / exact.norm())
