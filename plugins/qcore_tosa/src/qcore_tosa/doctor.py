"""What can be wrong with Arm's reference model here, for ``qcore doctor``."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["check"]


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the command that mends it."""
    try:
        import tosa_reference_model  # noqa: F401
    except ImportError as error:
        fix = "pip install --force-reinstall 'tosa-tools>=2026.5,<2026.6'"
        yield f"Arm's reference model does not import: {error}", fix
