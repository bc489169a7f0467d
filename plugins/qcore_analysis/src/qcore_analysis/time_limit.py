"""Stopping what takes too long."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qcore.cli.progress import Stopped
from qcore_analysis.errors import InputError, TimeLimitError

__all__ = ["time_limit"]


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
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Stopped as stopped:
        raise TimeLimitError(
            f"the time limit of {seconds:g} s was up{stopped.during and ','}{stopped.during}. "
            "Allow more time, or pass fewer samples."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
