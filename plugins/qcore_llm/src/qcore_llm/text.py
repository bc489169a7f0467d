"""Text to calibrate and to evaluate on, as token numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from qcore.errors import QcoreError
from qcore_llm.errors import LanguageModelError, PerplexityError

__all__ = [
    "WINDOW",
    "calibration_windows",
    "check_tokens",
    "documentation",
    "read_text",
    "token_numbers",
    "windows",
]

#: Tokens that are read together; a longer text is cut.
WINDOW: Final = 256


def documentation() -> str:
    """Return the help topics of Python's documentation, which every installation has."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def read_text(path: str | Path | None) -> str:
    """Return what a text file holds, in UTF-8; for None, :func:`documentation`."""
    if path is None:
        return documentation()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageModelError(
            f"Cannot read text from {path}: {error}. Pass a text file in UTF-8."
        ) from error


def token_numbers(tokenizer: Any, text: str) -> torch.Tensor:
    """Return a text's token numbers [length], int64, without special ones around it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def check_tokens(tokens: torch.Tensor, vocabulary: int, kind: type[QcoreError]) -> None:
    """Raise an error of a kind where a model does not have some tokens.

    Args:
        tokens: Token numbers [any], at least one.
        vocabulary: How many the model has.
        kind: The error.
    """
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise kind(
            f"Token numbers are 0 to {vocabulary - 1}; there is {int(wrong[0])}. Use the tokenizer "
            "of this model."
        )


def windows(tokens: torch.Tensor, length: int = WINDOW) -> torch.Tensor:
    """Cut tokens into windows.

    Args:
        tokens: Token numbers [any], int64.
        length: Tokens in a window, at least 2.

    Returns:
        The whole windows [count, length]; what is left over at the end is dropped.

    Raises:
        PerplexityError: There is less than one window.
    """
    count = len(tokens) // length
    if not count:
        raise PerplexityError(
            f"The text has {len(tokens)} tokens, and one window takes {length}. Pass a longer text."
        )
    return tokens[: count * length].view(count, length)


def calibration_windows(tokens: torch.Tensor, count: int, length: int = WINDOW) -> torch.Tensor:
    """Return windows that lie evenly over a text.

    Args:
        tokens: Token numbers [any], int64.
        count: The most windows to take.
        length: Tokens in a window.

    Returns:
        The windows [at most count, length].
    """
    every = windows(tokens, length)
    chosen = torch.linspace(0, len(every) - 1, min(count, len(every))).round().long()
    return every[chosen]
