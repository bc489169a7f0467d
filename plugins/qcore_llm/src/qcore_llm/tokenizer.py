"""Tokenizers as bytes, so that they travel in a program."""

from __future__ import annotations

import json
from typing import Any, Final

from qcore_llm.errors import LanguageModelError

__all__ = ["tokenizer_data", "tokenizer_from"]

#: What a tokenizer of transformers has beside that of the library tokenizers.
_MORE: Final = ("bos_token", "eos_token", "chat_template")


def tokenizer_data(tokenizer: Any) -> bytes:
    """Return a tokenizer as JSON.

    Args:
        tokenizer: One of transformers', on the library tokenizers.

    Returns:
        The bytes.

    Raises:
        LanguageModelError: It is written in Python, which no file can hold.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise LanguageModelError(
            f"{type(tokenizer).__name__} is written in Python, which a program cannot hold. Pass "
            "the fast tokenizer: transformers.AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    more = {name: _text(getattr(tokenizer, name, None)) for name in _MORE}
    return json.dumps({"tokenizer": inner.to_str(), **more}).encode()


def tokenizer_from(data: bytes) -> Any:
    """Return the tokenizer of :func:`tokenizer_data`, as transformers has it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    read = json.loads(data)
    inner = Tokenizer.from_str(read.pop("tokenizer"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **read)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
