"""The line that a command has for what takes long: what it is, how far it is, how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Over", "Stopped", "bars", "step"]

Over = Callable[[Sequence[Any]], Iterator[Any]]
"""Yields the items of a sequence, and shows how many there were and the time that is left."""


class Stopped(BaseException):
    """Ends a step from outside, passes all that catches errors on its way, and learns its name."""

    during = ""


def bars(quiet: bool) -> bool | None:
    """Return what ``progress`` of the API takes: no bar, or one on a terminal."""
    return False if quiet else None


@contextmanager
def step(name: str, quiet: bool = False) -> Iterator[Over]:
    """Show the name of a step on a terminal while it lasts, and how long it took.

    Args:
        name: What is done.
        quiet: Whether to show nothing; so it is where stderr is no terminal.

    Yields:
        What to go with over the items that the step consists of, where their number is known.
    """
    start = time.perf_counter()

    def show(text: str, end: str = "") -> None:
        if not quiet and sys.stderr.isatty():
            print(f"\r\x1b[K{name}{text}", end=end, file=sys.stderr, flush=True)

    def over(items: Sequence[Any]) -> Iterator[Any]:
        begun = time.perf_counter()
        for done, item in enumerate(items):
            left = (time.perf_counter() - begun) / max(done, 1) * (len(items) - done)
            show(f" ... {done + 1} of {len(items)}" + f", {left:.0f} s left" * bool(done))
            yield item

    show(" ...")
    try:
        yield over
    except Stopped as stop:
        stop.during = f" {name}"
        raise
    finally:
        show(f": {time.perf_counter() - start:.1f} s", "\n")
