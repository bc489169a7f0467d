"""What qcore changes of torch, for speed: no result differs; what it needs, and waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from qcore.compat.patching import Change, Requirement

__all__ = ["EXPORTED", "TRACING", "counted_names"]

#: Held while graphs are traced or rewritten. torch overrides operators for the whole process then,
#: and keeps what it hands on from node to node in variables of modules: of two threads at it at
#: once, each would get some of the other's. Models run without it.
TRACING: Final = threading.RLock()

_VERSIONS: Final = ">=2.13,<2.14"

#: A program of ``torch.export``, of which copies with other graphs and tables are made.
EXPORTED: Final = Requirement(
    __name__,
    "torch",
    _VERSIONS,
    "torch.export:ExportedProgram",
    ["_update"],
    why="its constructor takes whatever a release adds to a program, and a copy must keep that.",
)
_COUNTED_NAMES: Final = Change(
    __name__,
    "torch",
    _VERSIONS,
    "torch.ao.quantization.fx.prepare",
    ["get_new_attr_name_with_prefix"],
    why="to name an observer it tries every number from 0, which takes most of the time for large "
    "models and grows with the square of their size.",
)


def counted_names() -> AbstractContextManager[None]:
    """Name observers by counting on."""
    counts: dict[tuple[int, str], int] = {}

    def with_prefix(prefix: str) -> Callable[[Any], str]:
        prefix = prefix.replace(".", "_")

        def new_name(owner: Any) -> str:
            key = (id(owner), prefix)
            number = counts.get(key, 0)
            while hasattr(owner, f"{prefix}{number}"):
                number += 1
            counts[key] = number
            return f"{prefix}{number}"

        return new_name

    return _COUNTED_NAMES.applied(with_prefix)
