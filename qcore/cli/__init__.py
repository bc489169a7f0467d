"""The ``qcore`` command. Nothing here imports torch: help and scaffolding answer at once."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; an error becomes a line on stderr and exit status 1."""
    try:
        from qcore.cli.app import run
    except ModuleNotFoundError as error:
        sys.exit(
            f"qcore: the command needs {error.name}, which is not installed. "
            'Install what it takes: pip install "qcore-quant[cli]"'
        )
    run()
