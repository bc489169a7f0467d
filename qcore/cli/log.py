"""What libraries say while a command runs: not shown, and written to a file where it fails."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

__all__ = ["native_noise_hidden", "written_log"]

_NATIVE: list[IO[bytes]] = []


@contextmanager
def native_noise_hidden() -> Iterator[None]:
    """Keep what native code and child processes write to standard error; show what Python writes.

    A crash of this process is still shown, with where Python was.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        if _is_descriptor_2():
            with suppress(OSError):  # A command may need no disk.
                kept = stack.enter_context(tempfile.TemporaryFile())
                stack.enter_context(_redirected_to(kept))
        yield


@contextmanager
def _redirected_to(kept: IO[bytes]) -> Iterator[None]:
    before, real = sys.stderr, os.dup(2)
    with os.fdopen(real, "w", 1, before.encoding, "backslashreplace") as shown:
        before.flush()
        os.dup2(kept.fileno(), 2)
        sys.stderr = shown
        faulthandler.enable(shown)
        _NATIVE.append(kept)
        try:
            yield
        finally:
            _NATIVE.remove(kept)
            faulthandler.disable()
            sys.stderr = before
            os.dup2(real, 2)


def written_log() -> str:
    """Write what was hidden into a file; return a line that names it, empty where nothing was."""
    from qcore.quiet import HIDDEN

    said = "".join(f"{line}\n" for line in HIDDEN)
    for kept in _NATIVE:
        kept.seek(0)
        said += kept.read().decode(errors="replace")
    if not said:
        return ""
    try:
        handle, path = tempfile.mkstemp(prefix="qcore-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(said)
    except OSError:  # The error itself matters more.
        return ""
    return f"\nWhat the libraries said meanwhile: {path}"


def _is_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # None, closed, or no file at all.
        return False
