"""The line that a command has for what takes long: what it is, how far it is, how long it took."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from qcore.errors import QcoreError
from qcore.files import write_whole

__all__ = ["Over", "Stopped", "bars", "step"]

Over = Callable[[Sequence[Any]], Iterator[Any]]
"""Yields the items of a sequence, and shows how many there were and the time that is left."""


#: How often the time of a step is shown anew, in seconds.
_EVERY_S = 1.0

#: Steps whose time is kept; the oldest go first.
_KEPT: Final = 200


class Stopped(BaseException):
    """Ends a step from outside, passes all that catches errors on its way, and learns its name."""

    during = ""


def bars(quiet: bool) -> bool | None:
    """Return what ``progress`` of the API takes: no bar, or one on a terminal."""
    return False if quiet else None


@contextmanager
def step(name: str, quiet: bool = False, *, of: str | None = None) -> Iterator[Over]:
    """Show the name of a step on a terminal while it lasts, and how long it took.

    Args:
        name: What is done.
        quiet: Whether to show nothing; so it is where stderr is no terminal.
        of: For a step that nothing inside counts: what it is done to, such as a file's name. Its
            time is shown as it passes, and from the second time on what is left of the last.

    Yields:
        What to go with over the items that the step consists of, where their number is known.
    """
    start = time.perf_counter()
    shown = not quiet and sys.stderr.isatty()

    def show(text: str, end: str = "") -> None:
        if shown:
            print(f"\r\x1b[K{name}{text}", end=end, file=sys.stderr, flush=True)

    def over(items: Sequence[Any]) -> Iterator[Any]:
        begun = time.perf_counter()
        for done, item in enumerate(items):
            left = (time.perf_counter() - begun) / max(done, 1) * (len(items) - done)
            show(f" ... {done + 1} of {len(items)}" + f", {left:.0f} s left" * bool(done))
            yield item

    show(" ...")
    try:
        if of is not None and shown:
            with _ticking(show, f"{name}: {of}"):
                yield over
        else:
            yield over
    except Stopped as stop:
        stop.during = f" {name}"
        raise
    finally:
        show(f": {time.perf_counter() - start:.1f} s", "\n")


@contextmanager
def _ticking(show: Callable[[str], None], key: str) -> Iterator[None]:
    """Show the time that has passed, and what is left of the last one of the same key; keep it."""
    start, over, before = time.perf_counter(), threading.Event(), _seconds()

    def tick() -> None:
        while not over.wait(_EVERY_S):
            passed = time.perf_counter() - start
            left = before.get(key, 0.0) - passed
            show(f" ... {passed:.0f} s" + f", about {left:.0f} s left" * (left > 0))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
        before.pop(key, None)
        kept = [*before.items(), (key, time.perf_counter() - start)][-_KEPT:]
        # A command may need no disk, and nobody a home.
        with suppress(OSError, RuntimeError, QcoreError):
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(dict(kept)).encode(), "times", file.name, QcoreError)
    finally:
        over.set()
        thread.join()


def _seconds() -> dict[str, float]:
    """Return how long steps took the last time, by key; nothing where no file says so."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {key: float(value) for key, value in found.items()}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}


def _file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "qcore" / "seconds.json"
