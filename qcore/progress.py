"""What long work is doing, for how long, and how long it will take, on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import attrs
from tqdm import tqdm

__all__ = ["bar_is_off", "showing_stages", "stage"]


@attrs.define
class _Shown:
    work: str
    bar: tqdm[None]
    left: dict[str, float]


_SHOWN: ContextVar[_Shown | None] = ContextVar("shown", default=None)


def bar_is_off(progress: bool | None) -> bool | None:
    """Return what tqdm's ``disable`` takes, for whether to show a bar; ``None``: on a terminal."""
    return None if progress is None else not progress


@contextmanager
def showing_stages(
    work: str, shares: Mapping[str, float], progress: bool | None = None
) -> Iterator[None]:
    """Show what work is doing while it lasts, on one line of stderr.

    Args:
        work: Its name.
        shares: Each stage's usual share of the time, in any unit; the time that is left is
            estimated by them.
        progress: Whether to show it; ``None`` means: on a terminal.

    Yields:
        Nothing; :func:`stage` says what is done.
    """
    with tqdm(
        total=sum(shares.values()),
        desc=work,
        bar_format="{desc}, {elapsed} so far, {remaining} left",
        leave=False,
        smoothing=0,
        mininterval=0,
        disable=bar_is_off(progress),
    ) as bar:
        before = _SHOWN.set(_Shown(work, bar, dict(shares)))
        over = threading.Event()
        ticking = threading.Thread(target=_ticking, args=(bar, over), daemon=True)
        if not bar.disable:
            ticking.start()
        try:
            yield
        finally:
            over.set()
            # Otherwise it may draw the bar again once that is closed.
            if ticking.is_alive():
                ticking.join()
            _SHOWN.reset(before)


def _ticking(bar: tqdm[None], over: threading.Event) -> None:
    """Show the time each second: one stage can take most of it."""
    while not over.wait(1):
        bar.refresh()


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Time a stage, and name it where the work is shown.

    Args:
        name: Its name; one that the work does not list is shown, too.
        seconds: Takes the time in seconds, added to what the stage took before.

    Yields:
        Nothing.
    """
    shown = _SHOWN.get()
    if shown is not None:
        shown.bar.set_description_str(f"{shown.work}: {name}")
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        if shown is not None:
            shown.bar.update(shown.left.pop(name, 0.0))
