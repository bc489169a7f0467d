"""The ``qcore`` command. Nothing here imports torch: help and scaffolding answer at once."""

from __future__ import annotations

from qcore.cli.app import main

__all__ = ["main"]
