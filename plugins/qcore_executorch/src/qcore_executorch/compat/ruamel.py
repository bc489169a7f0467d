"""What is changed of ruamel.yaml while ExecuTorch is imported."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from qcore.compat import Change

__all__ = ["quick_yaml"]

_READING: Final = Change(
    __name__,
    "ruamel.yaml",
    ">=0.18,<0.20",
    "ruamel.yaml:YAML",
    ["load"],
    why="ExecuTorch reads 138 kB with it when it is imported, in Python alone: 1 to 2 s.",
)


def quick_yaml() -> AbstractContextManager[None]:
    """Read plain text with PyYAML's compiled parser, where it is there; ExecuTorch needs both."""
    try:
        pyyaml = importlib.import_module("yaml")
        importlib.import_module("ruamel.yaml")
    except ImportError:
        return nullcontext()
    if not pyyaml.__with_libyaml__:
        return nullcontext()
    (theirs,) = _READING.originals()

    def load(self: Any, stream: Any) -> Any:
        if self.typ == ["safe"] and isinstance(stream, str):
            return pyyaml.load(stream, pyyaml.CSafeLoader)
        return theirs(self, stream)

    return _READING.applied(load)
