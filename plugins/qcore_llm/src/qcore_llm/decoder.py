"""A causal language model of transformers with a static cache, in the form that is exported."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from qcore.quiet import quiet
from qcore_llm.attention import PLAIN, AttentionForm, CachedAttention, attending
from qcore_llm.causes import differing_module, keeper_of, naming_errors, place_of
from qcore_llm.errors import LanguageModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Decoder", "Scorer"]

#: Tokens that are read when the decoder is compared with its model, the last few one by one.
_PROBE: Final = 8
_STEPS: Final = 2

#: Largest distance to the model's own logits, relative to them, of a model in float32.
_CLOSE: Final = 1e-3
#: That of others: what is quantized at run time, or has few bits, rounds otherwise where a sum is
#: taken in another order.
_ROUNDED: Final = 0.1


class Scorer(nn.Module):  # type: ignore[misc]
    """A language model as tokens to logits, without a cache.

    Args:
        model: The model; shared, not copied.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position.

        Args:
            tokens: Token numbers [batch, length], int64.

        Returns:
            The logits [batch, length, vocabulary], float32.
        """
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


class Decoder(nn.Module):  # type: ignore[misc]
    """Continues a text: keeps the keys and values of what came before.

    Args:
        model: The model, float or treated by ``qcore.quantize_``; shared, not copied.
        max_context: The longest text in tokens.
        form: The form of attention; the plain one where the model's attention is none that this one
            takes.

    Raises:
        LanguageModelError: The model is of a kind that cannot be decoded with a cache, or computes
            something else with one.
    """

    def __init__(
        self, model: PreTrainedModel, max_context: int, form: AttentionForm = PLAIN
    ) -> None:
        super().__init__()
        config = model.config.get_text_config()
        if model.config.is_encoder_decoder:
            raise LanguageModelError(
                f"{type(model).__name__} is an encoder with a decoder: "
                f"{place_of(model, model.get_encoder())} reads a text of its own. Only models that "
                "are a decoder alone, such as Llama, have a form with a cache."
            )
        limit = getattr(config, "max_position_embeddings", None)
        if not 2 <= max_context <= (limit or max_context):
            raise LanguageModelError(
                f"max_context={max_context}: {type(model).__name__} reads texts of 2 to {limit} "
                "tokens. Pass a length between."
            )
        self.model = model
        self.max_context = max_context
        self.vocabulary: int = config.vocab_size
        noted = _noted(model)
        shapes = noted.shapes
        is_plain = noted.is_capped or any(keys != values for keys, values in shapes.values())
        self.form = PLAIN if is_plain else form
        self.layers = len(shapes)
        for layer, pair in shapes.items():
            for name, (heads, size) in zip("kv", pair, strict=True):
                self.register_buffer(f"{name}{layer}", torch.zeros(1, max_context, heads, size))
        self._compare()

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        """Read tokens and return the logits of what comes next.

        Args:
            tokens: Token numbers [1, length], int64.
            input_pos: Position of the first one [1], int64; those before it are in the cache.

        Returns:
            The logits [1, vocabulary], float32.
        """
        start: Any = input_pos[0].item()
        length = tokens.shape[1]
        torch._check(start >= 0)
        torch._check(start < self.max_context)
        torch._check(start + length <= self.max_context)
        positions = start + torch.arange(length)
        one = CachedAttention(self.form, start, positions, self._caches())
        with attending(self.model, one):
            output = self.model(
                input_ids=tokens,
                position_ids=positions[None],
                past_key_values=one,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def clear(self) -> None:
        """Forget what was read."""
        for pair in self._caches():
            for cache in pair:
                cache.zero_()

    def _caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (self.get_buffer(f"k{layer}"), self.get_buffer(f"v{layer}"))
            for layer in range(self.layers)
        ]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _compare(self) -> None:
        """Raise unless the model computes with a cache what it computes without."""
        window = getattr(self.model.config.get_text_config(), "sliding_window", None) or 0
        length = min(window + _PROBE, self.max_context)
        read = max(length - _STEPS, 1)
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.vocabulary, (1, length), generator=random)

        def whole() -> torch.Tensor:
            logits: torch.Tensor = Scorer(self.model)(tokens)
            return logits

        def parts() -> list[torch.Tensor]:
            ends = [0, read, *range(read + 1, length + 1)]
            found = [
                self(tokens[:, start:end], torch.tensor([start])) for start, end in pairwise(ends)
            ]
            self.clear()
            return found

        with quiet(), naming_errors(self.model):
            expected, found = whole()[0, read - 1 :], torch.cat(parts())
        distance = float((found - expected).norm() / expected.norm())
        limit = _CLOSE if _is_exact(self.model) else _ROUNDED
        if not distance <= limit:
            with quiet():
                place = differing_module(self.model, whole, parts, limit / 10)
            raise LanguageModelError(
                f"{type(self.model).__name__} computes something else with a cache than without: "
                f"its logits differ by {distance:.2g} times their size, by {place}. That keeps "
                "state of its own beside keys and values, or masks in a way of its own. No program "
                "was made."
            )


def _is_exact(model: nn.Module) -> bool:
    """Say whether a model computes in float32 alone."""
    weights = list(model.parameters())
    held = [*weights, *model.buffers()]
    return all(type(weight.data) is torch.Tensor for weight in weights) and not any(
        value.dtype in (torch.int8, torch.uint8, torch.float16, torch.bfloat16) for value in held
    )


class _Recorder(CachedAttention):
    """Notes the sizes of keys and values."""

    def __init__(self) -> None:
        super().__init__(PLAIN, 0, torch.zeros(1, dtype=torch.int64), [])
        self.shapes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = ((x.shape[1], x.shape[3]) for x in (keys, values))
        self.shapes[layer_idx] = (k, v)
        return keys.transpose(1, 2), values.transpose(1, 2)

    @property
    def context(self) -> int:
        return 1


@torch.no_grad()  # type: ignore[untyped-decorator]
def _noted(model: PreTrainedModel) -> _Recorder:
    """Return what one token shows of the model's attention, all layers of it."""
    recorder = _Recorder()
    one = torch.zeros(1, 1, dtype=torch.int64)
    with quiet(), naming_errors(model), attending(model, recorder):
        model(input_ids=one, position_ids=one, past_key_values=recorder, use_cache=True)
    layers = model.config.get_text_config().num_hidden_layers
    if missing := sorted(set(range(layers)) - set(recorder.shapes)):
        raise LanguageModelError(
            f"{type(model).__name__}: {keeper_of(model, missing[0])} keeps no keys and values, one "
            f"of {len(missing)} such layers. Only attention has a form with a cache, no state "
            "space or linear attention."
        )
    return recorder
