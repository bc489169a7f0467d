"""Saying what takes long, a line on a terminal for each stage, and stopping what takes too long."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qcore_analysis.errors import InputError, TimeLimitError

__all__ = ["stage", "time_limit"]


class _TimeIsUp(BaseException):
    """Passes all that catches errors on its way."""

    during = ""


@contextmanager
def stage(name: str, quiet: bool = False) -> Iterator[None]:
    """Show the name of a stage while it lasts, and how long it took.

    Args:
        name: What is done.
        quiet: Whether to show nothing; so it is where stderr is no terminal.

    Yields:
        Nothing.
    """
    shown = not quiet and sys.stderr.isatty()
    start = time.perf_counter()
    if shown:
        print(f"{name} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    except _TimeIsUp as stop:
        stop.during = f" {name}"
        raise
    finally:
        if shown:
            print(f"\r{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop what takes longer than it may, as soon as Python has its turn again.

    Args:
        seconds: The limit in seconds of the wall clock; None for none.

    Yields:
        Nothing.

    Raises:
        TimeLimitError: The time was up.
        InputError: The limit is not positive, or this is not the main thread.
    """
    if seconds is None:
        yield
        return
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        raise InputError("A time limit is positive and of the main thread. Leave it out elsewhere.")

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
