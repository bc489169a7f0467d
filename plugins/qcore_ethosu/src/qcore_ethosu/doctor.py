"""What can be wrong with Vela here, for ``qcore doctor``."""

from __future__ import annotations

from collections.abc import Iterator

from qcore_executorch.doctor import imports

__all__ = ["check"]


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the command that mends it."""
    yield from imports(
        "ethosu.vela.vela",
        "Vela",
        "pip install --force-reinstall --no-deps ethos-u-vela",
    )
