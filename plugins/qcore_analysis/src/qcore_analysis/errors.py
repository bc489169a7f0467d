"""Errors of this distribution."""

from __future__ import annotations

from qcore.errors import QcoreError

__all__ = ["InputError", "RecipeError", "TimeLimitError"]


class InputError(QcoreError):
    """A model or data on the command line cannot be read."""


class RecipeError(QcoreError):
    """A recipe cannot be read, says what it must not, or was made for something else."""


class TimeLimitError(QcoreError):
    """Something took longer than it may."""
