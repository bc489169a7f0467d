"""What can be wrong with Arm's reference model here, for ``qcore doctor``."""

from __future__ import annotations

from collections.abc import Iterator

from qcore_executorch.doctor import imports

__all__ = ["check"]


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the command that mends it."""
    yield from imports(
        "tosa_reference_model",
        "Arm's reference model",
        "pip install --force-reinstall 'tosa-tools>=2026.5,<2026.6'",
    )
