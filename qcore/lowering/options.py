"""The options of a backend's ``lower``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qcore.errors import LoweringError, near_misses

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
    unknown = [option for option in options if option not in known]
    if unknown:
        close = near_misses(unknown[0], known)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise LoweringError(
            f"{backend}'s lower has no option {', '.join(map(repr, unknown))}.{hint} "
            f"Its options: {', '.join(known) or 'none'}."
        )
