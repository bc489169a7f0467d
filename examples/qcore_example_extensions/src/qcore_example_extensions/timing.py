"""An extension that measures how long each hook of each quantizer takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import Any, Final

import qcore

__all__ = ["CALLS", "SECONDS", "HookTimes", "summary"]

#: Seconds spent in each hook by all quantizers of this process, and how often each was called.
SECONDS: Final[Counter[str]] = Counter()
CALLS: Final[Counter[str]] = Counter()

Wrapper = Generator[None, Any, Any]


def _timed(hook: str) -> Wrapper:
    start = time.perf_counter()
    try:
        return (yield)
    finally:
        SECONDS[hook] += time.perf_counter() - start  # type: ignore[assignment]
        CALLS[hook] += 1


class HookTimes:
    """Wraps every hook; tried first, so that it measures the other extensions, too."""

    @qcore.hookimpl(wrapper=True, tryfirst=True)
    def supported_schemes(self) -> Wrapper:
        """Time the declaration of schemes."""
        return (yield from _timed("supported_schemes"))

    @qcore.hookimpl(wrapper=True, tryfirst=True)
    def transform_for_annotation(self) -> Wrapper:
        """Time the rewriting."""
        return (yield from _timed("transform_for_annotation"))

    @qcore.hookimpl(wrapper=True, tryfirst=True)
    def annotate(self) -> Wrapper:
        """Time the annotation."""
        return (yield from _timed("annotate"))

    @qcore.hookimpl(wrapper=True, tryfirst=True)
    def validate_partial(self) -> Wrapper:
        """Time the judgement on what stays in float."""
        return (yield from _timed("validate_partial"))

    @qcore.hookimpl(wrapper=True, tryfirst=True)
    def lower(self) -> Wrapper:
        """Time the lowering."""
        return (yield from _timed("lower"))


def summary() -> str:
    """Return the times as a table, the longest first."""
    return "\n".join(
        f"{hook:26} {seconds:9.4f} s in {CALLS[hook]} calls"
        for hook, seconds in SECONDS.most_common()
    )
