"""Errors of this distribution."""

from __future__ import annotations

from qcore.errors import QcoreError

__all__ = ["GenerationError", "LanguageModelError", "PerplexityError"]


class LanguageModelError(QcoreError):
    """A language model cannot be read, or is of a kind that has no program with a cache."""


class GenerationError(QcoreError):
    """A prompt or its tokens do not fit the program."""


class PerplexityError(QcoreError):
    """A program reads text too badly, or there is too little text."""
