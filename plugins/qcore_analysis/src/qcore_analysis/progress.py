"""Saying what takes long: a line on a terminal for each stage, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stage"]


@contextmanager
def stage(name: str, quiet: bool = False) -> Iterator[None]:
    """Show the name of a stage while it lasts, and how long it took.

    Args:
        name: What is done.
        quiet: Whether to show nothing; so it is where stderr is no terminal.

    Yields:
        Nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    start = time.perf_counter()
    print(f"{name} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"\r{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
