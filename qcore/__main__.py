"""``python -m qcore``: the command."""

from __future__ import annotations

from qcore.cli import main

main()
