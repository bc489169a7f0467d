"""What can be wrong with Vela here, for ``qcore doctor``."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["check"]


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the command that mends it."""
    try:
        from ethosu.vela import vela  # noqa: F401
    except ImportError as error:
        fix = "pip install --force-reinstall --no-deps ethos-u-vela"
        yield f"Vela does not import: {error}", fix
