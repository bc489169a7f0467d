"""Saying what takes long and how much is left of it, and stopping what takes too long."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qcore_analysis.errors import InputError, TimeLimitError

__all__ = ["Over", "stage", "time_limit"]

Over = Callable[[Sequence[Any]], Iterator[Any]]
"""Yields the items of a sequence, and shows how many there were and the time that is left."""


class _TimeIsUp(BaseException):
    """Passes all that catches errors on its way."""

    during = ""


@contextmanager
def stage(name: str, quiet: bool = False) -> Iterator[Over]:
    """Show the name of a stage on a terminal while it lasts, and how long it took.

    Args:
        name: What is done.
        quiet: Whether to show nothing; so it is where stderr is no terminal.

    Yields:
        What to go with over the items that the stage consists of, where their number is known.
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
    except _TimeIsUp as stop:
        stop.during = f" {name}"
        raise
    finally:
        show(f": {time.perf_counter() - start:.1f} s", "\n")


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop what takes longer than it may, as soon as Python has its turn again.

    Args:
        seconds: The limit in seconds of the wall clock; None for none.

    Yields:
        Nothing.

    Raises:
        TimeLimitError: The time was up.
        InputError: The limit is not positive, or this is not the main thread, the only one that
            Python lets a signal stop.
    """
    if seconds is None:
        yield
        return
    if seconds <= 0:
        raise InputError(f"A time limit of {seconds:g} s is none. Pass seconds above 0, or None.")
    here = threading.current_thread()
    if here is not threading.main_thread():
        raise InputError(
            f"A time limit stops the main thread alone, and this is {here.name}. "
            "Leave it out here, or make the comparison in a process of its own."
        )

    def stop(*_: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimeIsUp as stopped:
        raise TimeLimitError(
            f"the time limit of {seconds:g} s was up{stopped.during and ','}{stopped.during}. "
            "Allow more time, or pass fewer samples."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
