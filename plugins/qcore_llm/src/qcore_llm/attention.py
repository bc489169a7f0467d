"""Attention over a static cache, in the forms that backends have: data, not branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, Final

import attrs
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from qcore_executorch import import_executorch

__all__ = ["FORMS", "PLAIN", "CachedAttention", "attending", "form_for"]

#: What transformers knows our attention by.
_NAME: Final = "qcore"


@attrs.frozen
class AttentionForm:
    """How keys and values are kept, and how queries attend to them.

    Attributes:
        name: Its name.
        update: Writes keys or values [1, length, heads, size] into a cache, at a position.
        attend: Takes queries [1, length, heads, size], both caches, the pass, the sliding window
            (None for all that is kept), the scale and the cap of the scores; returns the attention.
        module: Python module that registers its operators; empty where torch has them. Those take
            neither capped scores nor keys and values of two sizes.
    """

    name: str
    update: Callable[[torch.Tensor, torch.Tensor, CachedAttention], None]
    attend: Callable[..., torch.Tensor]
    module: str = ""


class _NoLayers(tuple[()]):
    """Of transformers' own kinds of state there are none."""

    def __getitem__(self, layer: Any) -> Any:
        raise NotImplementedError(f"layer {layer} keeps state other than keys and values")


@attrs.define
class CachedAttention(Cache):  # type: ignore[misc]
    """One pass through a model: where it starts, and the caches of its layers.

    Attributes:
        form: The form of attention.
        start: Position of the first token.
        positions: Positions of the tokens [length], int64.
        caches: For each layer the keys and the values [1, context, heads, size], float32.
        is_capped: Whether a layer has capped its scores, as Gemma 2's do.
    """

    layers: ClassVar[_NoLayers] = _NoLayers()
    form: AttentionForm
    start: Any
    positions: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    is_capped: bool = attrs.field(default=False, init=False)
    _masks: dict[int | None, torch.Tensor] = attrs.field(factory=dict, init=False)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's keys and values; return all that is kept."""
        kept = self.caches[layer_idx]
        for new, old in zip((keys, values), kept, strict=True):
            self.form.update(new.transpose(1, 2), old, self)
        return kept

    def get_seq_length(self, *_: Any, **__: Any) -> Any:
        """Return how many tokens came before."""
        return self.start

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        """Return the length of what is attended to, and its first position."""
        return self.context, 0

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        return int(self.caches[0][0].shape[1])

    @property
    def is_compileable(self) -> bool:
        """Its sizes do not change."""
        return True

    def mask(self, window: int | None) -> torch.Tensor:
        """Return what is added to scores [length, context]: 0 where a token looks, else -inf."""
        if window not in self._masks:
            kept = torch.arange(self.context)[None, :]
            now = self.positions[:, None]
            seen = kept <= now
            if window is not None:
                seen = seen & (kept > now - window)
            self._masks[window] = torch.where(seen, 0.0, float("-inf"))
        return self._masks[window]


_PASS: ContextVar[CachedAttention] = ContextVar("pass")


@contextmanager
def attending(model: Any, one: CachedAttention) -> Iterator[None]:
    """Let a model of transformers attend through caches of ours while the context lasts.

    Args:
        model: The model; its configuration is changed meanwhile.
        one: The pass.
    """
    token = _PASS.set(one)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _PASS.reset(token)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    del module, attention_mask
    if others.get("s_aux") is not None:
        raise NotImplementedError("attention with sinks has no form with a cache")
    one = _PASS.get()
    one.is_capped |= softcap is not None
    window = sliding_window if sliding_window and sliding_window < one.context else None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries = query.transpose(1, 2)
    return one.form.attend(queries, key, value, one, window, scale, softcap), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Attention makes its own: in transformers it is as large as the context, for every layer."""


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)


def _write(new: torch.Tensor, kept: torch.Tensor, one: CachedAttention) -> None:
    kept.index_copy_(1, one.positions, new)


def _attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    heads, kept = queries.shape[2], keys.shape[2]
    # Queries of one group share keys and values: [1, kept, group, length, size].
    grouped = queries.transpose(1, 2).unflatten(1, (kept, heads // kept))
    scores = grouped @ keys.permute(0, 2, 3, 1).unsqueeze(2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # Vulkan's softmax takes no more than four dimensions.
    shares = torch.softmax((scores + mask).flatten(1, 2), -1).view_as(scores)
    attended = (shares @ values.transpose(1, 2).unsqueeze(2)).flatten(1, 2).transpose(1, 2)
    return attended.contiguous()  # Some models take a view of it.


def _plain(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    one: CachedAttention,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    return _attention(queries, keys, values, one.mask(window), scale, softcap)


def _llama_write(new: torch.Tensor, kept: torch.Tensor, one: CachedAttention) -> None:
    torch.ops.llama.update_cache(new, kept, one.start)


def _llama_attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    one: CachedAttention,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    assert softcap is None
    mask = None if window is None else one.mask(window)
    attended: torch.Tensor = torch.ops.llama.custom_sdpa(
        queries, keys, values, one.start, mask, 0.0, mask is None, scale
    )
    return attended


def _in_python(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start_pos: int,
    attn_mask: torch.Tensor | None = None,
    drpout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute ``llama::custom_sdpa`` where a graph runs in Python.

    ExecuTorch's own form for that writes an error to the terminal at each call, and would agree
    with the program's kernel whatever that does.
    """
    del drpout_p
    end = start_pos + query.shape[1]
    if is_causal:
        late = torch.arange(end)[None] > torch.arange(start_pos, end)[:, None]
        mask = torch.where(late, float("-inf"), 0.0)
    else:
        mask = query.new_zeros(()) if attn_mask is None else attn_mask[:, :end]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key[:, :end], value[:, :end], mask, scale)


#: Operators of torch alone: every backend lowers or leaves them.
PLAIN: Final = AttentionForm("plain", _write, _plain)

#: Backend -> the form that its programs have; the others have the plain one. ExecuTorch's operators
#: read no more of a cache than is filled, and run on the CPU alone.
FORMS: Final = {
    "xnnpack": AttentionForm(
        "llama", _llama_write, _llama_attend, "executorch.extension.llm.custom_ops.custom_ops"
    ),
}


def form_for(backend: str) -> AttentionForm:
    """Return a backend's form of attention, with its operators registered in torch.

    Args:
        backend: Name of the backend.

    Returns:
        The form.

    Raises:
        RuntimeUnavailableError: What registers them is not installed.
    """
    form = FORMS.get(backend, PLAIN)
    if form.module:
        import_executorch(form.module)
        _replace_eager()
    return form


@cache
def _replace_eager() -> None:
    torch.library.impl("llama::custom_sdpa", "CPU", _in_python)
