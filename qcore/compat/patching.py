"""Changing what a library does, for as long as it is called."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib import metadata
from types import CodeType, FunctionType
from typing import Any, Final

from attrs import field, frozen

from qcore.errors import LibraryChangedError
from qcore.sharing import shared

__all__ = ["Change", "Requirement", "Wording", "requirements"]

_ABSENT: Final = object()
_REQUIREMENTS: Final[list[Requirement]] = []


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


def holders(target: Any, name: str) -> tuple[Any, ...]:
    """Return what may hold an attribute: a class and its bases, or alone for what every one has."""
    return target.__mro__ if isinstance(target, type) and name not in vars(object) else (target,)


def requirements() -> tuple[Requirement, ...]:
    """Return everything that the modules imported so far require of libraries, changes included."""
    return tuple(_REQUIREMENTS)


@frozen(eq=False)
class Requirement:
    """Names that a class or module of a library must have, such as private methods to override.

    Attributes:
        file: The module that declares it, its ``__name__``: where to look when it no longer fits.
        library: The distribution, such as ``torch``.
        versions: The versions it was written for, as pip writes them.
        owner: What has the names, as ``module``, ``module:class`` or ``module:class.method``.
        names: The attributes.
        why: What they are needed for; of a change, what is wrong with the library as it is.
        only: The versions that it is needed with at all; empty for every one. With others nothing
            is required and nothing changed.
    """

    file: str
    library: str
    versions: str
    owner: str
    names: tuple[str, ...] = field(converter=_names)
    why: str = field(kw_only=True)
    only: str = field(default="", kw_only=True)

    def __attrs_post_init__(self) -> None:
        _REQUIREMENTS.append(self)

    @property
    def needed(self) -> bool:
        """Whether the installed version is among those that need it."""
        return not self.only or self._version_is_in(self.only)

    @property
    def supported(self) -> bool:
        """Whether the installed version is among those that it was written for."""
        return self._version_is_in(self.versions)

    def target(self) -> Any:
        """Return the class or module.

        Raises:
            LibraryChangedError: The library no longer has it.
        """
        module, _, attribute = self.owner.partition(":")
        try:
            found: Any = importlib.import_module(module)
            # As an attribute of its package a module may be hidden by a function of its name.
            found = sys.modules[module]
            return operator.attrgetter(attribute)(found) if attribute else found
        except (ImportError, AttributeError) as error:
            raise self._misfit(f"has no {self.owner}") from error

    def checked(self) -> Any:
        """Return the class or module, once it is certain that it has the names.

        Raises:
            LibraryChangedError: It has one of them no longer.
        """
        target = self.target()
        for name in self.names if self.needed else ():
            self._check(target, name)
        return target

    def _check(self, target: Any, name: str) -> None:
        # A class answers for its metaclass, too: every one has __call__.
        if not any(hasattr(one, "__dict__") and name in vars(one) for one in holders(target, name)):
            raise self._misfit(f"has no {name!r} in {self.owner}")

    @property
    def installed(self) -> str:
        """The installed version; empty where there is none."""
        try:
            return metadata.version(self.library)
        except metadata.PackageNotFoundError:
            return ""

    def _version_is_in(self, versions: str) -> bool:
        from packaging.specifiers import SpecifierSet

        version = self.installed
        return bool(version) and SpecifierSet(versions).contains(version, prereleases=True)

    def _misfit(self, what: str) -> LibraryChangedError:
        return LibraryChangedError(
            f"{self.library} {self.installed or '(not installed)'} {what}, which {self.file} "
            f"needs: {self.why} It was written for {self.library}{self.versions}: install such a "
            f"version, or look into {self.file}."
        )


@frozen(eq=False)
class Wording(Requirement):
    """Names that a function, or the constructor of a class, uses: fields, variables, keys.

    An owner has no such attributes. What reads them where they may be missing finds nothing after a
    rename, and goes on: it asks :meth:`checked` before.
    """

    def functions(self) -> tuple[FunctionType, ...]:
        """Return the functions whose words count: those of base classes in the library, too."""
        return _functions(self.target())

    def _check(self, target: Any, name: str) -> None:
        if not any(name in _words(function.__code__) for function in _functions(target)):
            raise self._misfit(f"uses no {name!r} in {self.owner}")


# Graphs are asked node by node: what a library's functions say is found once.
@functools.cache
def _functions(target: Any) -> tuple[FunctionType, ...]:
    if not isinstance(target, type):
        return (inspect.unwrap(target),)
    library = target.__module__.partition(".")[0]
    bases = [one for one in target.__mro__ if one.__module__.partition(".")[0] == library]
    made = (vars(one).get("__init__") for one in bases)
    return tuple(one for one in made if isinstance(one, FunctionType))


@functools.cache
def _words(code: CodeType) -> set[Any]:
    constants = {one for one in code.co_consts if isinstance(one, str)}
    inner = (_words(one) for one in code.co_consts if isinstance(one, CodeType))
    return constants.union(code.co_names, code.co_varnames, code.co_cellvars, *inner)


@frozen(eq=False)
class Change(Requirement):
    """One change to a class or module of a library, for the thread that asks for it.

    Attributes:
        adds: Whether the attributes are new. An owner that has them already no longer needs it.
    """

    adds: bool = field(default=False, kw_only=True)
    _values: ContextVar[tuple[Any, ...] | None] = field(
        factory=lambda: ContextVar("values", default=None), init=False, repr=False
    )
    _installed: AbstractContextManager[None] = field(init=False, repr=False)

    @_installed.default
    def _shared_installation(self) -> AbstractContextManager[None]:
        return shared(self._install)

    def originals(self) -> tuple[Any, ...]:
        """Return what the library has under the names, in their order.

        Where the installed version needs no change they are ``None``: it may have no such names.

        Raises:
            LibraryChangedError: It has one of them no longer, or, of new ones, already.
        """
        if not self.needed:
            return (None,) * len(self.names)
        target = self.checked()
        found = (getattr(target, name) for name in (() if self.adds else self.names))
        return tuple(one.choose() if isinstance(one, _Switch) else one for one in found)

    @contextmanager
    def applied(self, *values: Any) -> Iterator[None]:
        """Give the owner other attributes while the context lasts.

        Other threads go on with what they have, be it the library's own.

        Args:
            *values: The attributes, in the order of the names. Those of a class that it inherits,
                or has not, are removed from it afterwards.

        Yields:
            Nothing.

        Raises:
            LibraryChangedError: The library no longer has what is to be changed.
        """
        if not self.needed:
            yield
            return
        with self._installed:
            token = self._values.set(values)
            try:
                yield
            finally:
                self._values.reset(token)

    def _check(self, target: Any, name: str) -> None:
        if not self.adds:
            super()._check(target, name)
        elif hasattr(target, name) and not isinstance(vars(target).get(name), _Switch):
            raise self._misfit(f"already has {name!r} in {self.owner}")

    @contextmanager
    def _install(self) -> Iterator[None]:
        target = self.checked()
        before = {name: vars(target).get(name, _ABSENT) for name in self.names}
        for index, name in enumerate(self.names):
            original = inspect.getattr_static(target, name, _ABSENT)
            setattr(target, name, _Switch(name, self._values, index, original))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is _ABSENT:
                    delattr(target, name)
                else:
                    setattr(target, name, value)


class _Switch:
    """An attribute of a class or module that is another one for some threads."""

    def __init__(
        self, name: str, values: ContextVar[tuple[Any, ...] | None], index: int, original: Any
    ) -> None:
        self._name = name
        self._values = values
        self._index = index
        self._original = original

    def choose(self) -> Any:
        values = self._values.get()
        return self._original if values is None else values[self._index]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = self.choose()
        if value is _ABSENT:
            raise AttributeError(self._name)
        bind = getattr(type(value), "__get__", None)
        return value if bind is None else bind(value, instance, owner)

    # What a module holds is not bound, but called or looked into.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.choose()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.choose(), name)
