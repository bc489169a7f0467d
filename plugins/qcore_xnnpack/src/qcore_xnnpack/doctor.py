"""What can be wrong with XNNPACK here, for ``qcore doctor``."""

from __future__ import annotations

from collections.abc import Iterator

from qcore_executorch.doctor import delegate_is_registered

__all__ = ["check"]


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the command that mends it."""
    yield from delegate_is_registered("XnnpackBackend")
