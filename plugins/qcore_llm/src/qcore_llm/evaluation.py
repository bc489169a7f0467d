"""How well text is read: of float models, quantized ones, and programs as they are executed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qcore_llm.decoder import Scorer
from qcore_llm.errors import GenerationError
from qcore_llm.program import LanguageProgram
from qcore_llm.text import WINDOW, check_tokens, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

__all__ = ["perplexity"]


def perplexity(
    model: LanguageProgram | PreTrainedModel,
    tokens: torch.Tensor,
    *,
    length: int | None = None,
    quiet: bool = False,
) -> float:
    """Return the perplexity of a text: e to the mean surprise at each token but a window's first.

    Args:
        model: A program, which is executed token by token with its cache, or a model of
            transformers, float or quantized.
        tokens: Token numbers [any], int64.
        length: Tokens that are read together, each window beginning anew; None takes 256, or what
            the program's cache holds where that is less.
        quiet: Whether to show no progress; so it is where stderr is no terminal.

    Returns:
        The perplexity: 1 where every token was certain.

    Raises:
        PerplexityError: The text is shorter than one window.
        GenerationError: The model does not have some tokens, or a window does not fit the
            program's cache.
    """
    length = length or min(WINDOW, getattr(model, "max_context", WINDOW))
    cut = windows(tokens, length)
    if isinstance(model, LanguageProgram):
        vocabulary, found = model.vocabulary, _executed(model, cut)
    else:
        vocabulary, found = model.config.get_text_config().vocab_size, _eager(model, cut)
    check_tokens(tokens, vocabulary, GenerationError)
    total = 0.0
    shown = tqdm(found, "perplexity", len(cut), unit="window", disable=quiet or None)
    for window, logits in zip(cut, shown, strict=True):
        total += float(cross_entropy(logits.double(), window[1:], reduction="sum"))
    return math.exp(total / (len(cut) * (length - 1)))


def _executed(program: LanguageProgram, cut: torch.Tensor) -> Iterator[torch.Tensor]:
    with program.reader() as reader:
        for window in cut:
            reader.forget()
            yield torch.stack([reader.read(token[None]) for token in window[:-1]])


def _eager(model: PreTrainedModel, cut: torch.Tensor) -> Iterator[torch.Tensor]:
    scorer = Scorer(model)
    for window in cut:
        with torch.no_grad():
            yield scorer(window[None])[0, :-1]
