"""Changing what a library does, for as long as it is called."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["LIBRARIES", "patched"]

# Held by whoever changes a library, be it what it does or what it says: one lock for all of them,
# because they are nested in different orders.
LIBRARIES: Final = threading.RLock()

_ABSENT: Final = object()


@contextmanager
def patched(owner: Any, /, **attributes: Any) -> Iterator[None]:
    """Give a library's module or class other attributes while the context lasts.

    Another thread that wants to patch anything waits for its end.

    Args:
        owner: The module or class.
        **attributes: The attributes by name. Those of a class that it inherits, or has not, are
            removed from it afterwards.

    Yields:
        Nothing.
    """
    with LIBRARIES:
        before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
        for name, value in attributes.items():
            setattr(owner, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
