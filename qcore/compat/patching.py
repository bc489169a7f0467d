"""Changing what a library does, for as long as it is called."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import importlib_metadata
from attrs import field, frozen

from qcore.errors import LibraryChangedError

__all__ = ["LIBRARIES", "Change", "changes"]

# Held by whoever changes a library, be it what it does or what it says: one lock for all of them,
# because they are nested in different orders.
LIBRARIES: Final = threading.RLock()

_ABSENT: Final = object()
_CHANGES: Final[list[Change]] = []


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


def changes() -> tuple[Change, ...]:
    """Return every change that the modules imported so far declare."""
    return tuple(_CHANGES)


@frozen
class Change:
    """One change to a class or module of a library.

    Attributes:
        file: The module that declares it, its ``__name__``: where to look when it no longer fits.
        library: The distribution it changes, such as ``torch``.
        versions: The versions it was written for, as pip writes them.
        owner: What it changes, as ``module`` or ``module:class``.
        names: The attributes that it replaces, or adds.
        why: What is wrong with the library as it is.
        adds: Whether the attributes are new. An owner that has them already no longer needs it.
    """

    file: str
    library: str
    versions: str
    owner: str
    names: tuple[str, ...] = field(converter=_names)
    why: str = field(kw_only=True)
    adds: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _CHANGES.append(self)

    def target(self) -> Any:
        """Return the class or module that is changed.

        Raises:
            LibraryChangedError: The library no longer has it.
        """
        module, _, attribute = self.owner.partition(":")
        try:
            found: Any = importlib.import_module(module)
            # As an attribute of its package a module may be hidden by a function of its name.
            found = sys.modules[module]
            return getattr(found, attribute) if attribute else found
        except (ImportError, AttributeError) as error:
            raise self._misfit(f"has no {self.owner}") from error

    def originals(self) -> tuple[Any, ...]:
        """Return what the library has under the names, in their order.

        Raises:
            LibraryChangedError: It has one of them no longer, or, of new ones, already.
        """
        target = self.target()
        for name in self.names:
            if hasattr(target, name) is self.adds:
                has = "already has" if self.adds else "has no"
                raise self._misfit(f"{has} {name!r} in {self.owner}")
        return () if self.adds else tuple(getattr(target, name) for name in self.names)

    @contextmanager
    def applied(self, *values: Any) -> Iterator[None]:
        """Give the owner other attributes while the context lasts.

        Another thread that wants to change anything waits for its end.

        Args:
            *values: The attributes, in the order of the names. Those of a class that it inherits,
                or has not, are removed from it afterwards.

        Yields:
            Nothing.

        Raises:
            LibraryChangedError: The library no longer has what is to be changed.
        """
        with LIBRARIES:
            self.originals()
            target = self.target()
            before = {name: vars(target).get(name, _ABSENT) for name in self.names}
            for name, value in zip(self.names, values, strict=True):
                setattr(target, name, value)
            try:
                yield
            finally:
                for name, value in before.items():
                    if value is _ABSENT:
                        delattr(target, name)
                    else:
                        setattr(target, name, value)

    def _misfit(self, what: str) -> LibraryChangedError:
        try:
            version = importlib_metadata.version(self.library)
        except importlib_metadata.PackageNotFoundError:
            version = "(not installed)"
        return LibraryChangedError(
            f"{self.library} {version} {what}, which {self.file} changes: {self.why} "
            f"It was written for {self.library}{self.versions}: install such a version, or look "
            f"into {self.file}."
        )
