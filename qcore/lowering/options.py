"""The options of a backend's ``lower``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qcore.errors import LoweringError, unknown_options

__all__ = ["check_options"]


def check_options(backend: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that a backend's ``lower`` does not have.

    Args:
        backend: The backend's name.
        options: What the user passed.
        known: The names that exist.

    Raises:
        LoweringError: Naming the options that do not exist and those that do.
    """
    problem = unknown_options(f"{backend}'s lower", options, known)
    if problem:
        raise LoweringError(problem)
