"""Find, select and load backends by name."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from qcore.errors import (
    ApiVersionError,
    BackendConflictError,
    BackendLoadError,
    UnknownBackendError,
    near_misses,
    unknown_options,
    warn,
)

if TYPE_CHECKING:
    import pluggy

__all__ = [
    "BackendInfo",
    "backends",
    "check_backend_class",
    "entry_points",
    "extensions",
    "load_backend",
    "register_backend",
    "unregister_backend",
]

BACKENDS: Final = "qcore.backends"
EXTENSIONS: Final = "qcore.extensions"


@frozen
class BackendInfo:
    """An installed or registered backend, not yet imported.

    Attributes:
        name: The name that ``qcore.get_quantizer`` takes.
        origins: Who provides it: ``distribution version (module:attribute)``. More than one origin
            is a conflict, and the backend cannot be used until one of them is gone.
    """

    name: str
    origins: tuple[str, ...]
    _entry_points: tuple[metadata.EntryPoint, ...] = field(default=(), repr=False, eq=False)
    _cls: type | None = field(default=None, repr=False, eq=False)

    @property
    def is_conflict(self) -> bool:
        """Whether several distributions claim the name."""
        return len(self.origins) > 1

    def load(self) -> type:
        """Import the backend's class and check it against the hook API.

        Returns:
            The class.

        Raises:
            BackendConflictError: Several distributions claim the name.
            BackendLoadError: The import fails, or what it gives is not a backend class.
            ApiVersionError: The class was written for another version of the hooks.
        """
        if self.is_conflict:
            raise BackendConflictError(
                f"{len(self.origins)} distributions claim the backend name {self.name!r}: "
                f"{'; '.join(self.origins)}. Uninstall all but one (pip uninstall ...)."
            )
        if self._cls is not None:
            return self._cls
        try:
            loaded = self._entry_points[0].load()
        except Exception as error:
            raise BackendLoadError(
                f"Backend {self.name!r} of {self.origins[0]} cannot be imported: "
                f"{type(error).__name__}: {error}. "
                "Reinstall that distribution with its dependencies, or uninstall it."
            ) from error
        return check_backend_class(self.name, loaded, self.origins[0])


def entry_points(group: str) -> Sequence[metadata.EntryPoint]:
    """Return the entry points of a group; read anew when a folder of the import path changes."""
    return tuple(_entry_points(tuple(map(_state, sys.path))).select(group=group))


@functools.lru_cache(maxsize=1)
def _entry_points(path: object) -> Any:
    del path  # Only says whether what was read still holds.
    return metadata.entry_points()


def _state(folder: str) -> tuple[str, int]:
    try:
        place = folder or os.getcwd()
        return place, os.stat(place).st_mtime_ns
    except OSError:
        return folder, 0


_registered: dict[str, BackendInfo] = {}
_warned_extensions: set[str] = set()


def backends() -> dict[str, BackendInfo]:
    """List the backends that are installed or registered in this process; imports none.

    Returns:
        Name to description, sorted by name.
    """
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry_point in entry_points(BACKENDS):
        found.setdefault(entry_point.name, []).append(entry_point)
    infos = {
        name: BackendInfo(name, tuple(map(_origin, points)), tuple(points))
        for name, points in found.items()
    }
    infos.update(_registered)
    return dict(sorted(infos.items()))


def _origin(entry_point: metadata.EntryPoint) -> str:
    # Each look at a distribution's metadata reads them anew.
    facts = entry_point.dist.metadata if entry_point.dist else None
    owner = f"{facts['Name']} {facts['Version']}" if facts else "unknown"
    return f"{owner} ({entry_point.value})"


def register_backend(name: str, cls: type) -> None:
    """Register a backend class in this process, in place of an installed one of the same name.

    Meant for tests and notebooks; a distribution declares an entry point instead.

    Args:
        name: The name for ``qcore.get_quantizer``.
        cls: The backend's class; not an instance of it.

    Raises:
        BackendLoadError: ``cls`` is not a backend class.
        ApiVersionError: It was written for another version of the hooks.
    """
    origin = f"registered in this process ({getattr(cls, '__qualname__', cls)!s})"
    checked = check_backend_class(name, cls, origin)
    _registered[name] = BackendInfo(name, (origin,), cls=checked)


def unregister_backend(name: str) -> None:
    """Undo :func:`register_backend`."""
    if _registered.pop(name, None) is None:
        raise UnknownBackendError(
            f"{name!r} was not registered in this process. Registered: {sorted(_registered)}."
        )


def check_backend_class(name: str, loaded: object, origin: str) -> type:
    """Return what an entry point names, if it is a class for this version of the hooks."""
    from qcore.hookspecs import API_VERSION

    if not inspect.isclass(loaded):
        raise BackendLoadError(
            f"Backend {name!r} of {origin} is {type(loaded).__name__} {loaded!r}, not a class. "
            "Name the backend's class: the core builds an instance of it for every quantizer."
        )
    version = getattr(loaded, "api_version", None)
    if version != API_VERSION:
        said = "does not state api_version" if version is None else f"has api_version {version!r}"
        raise ApiVersionError(
            f"Backend {name!r} of {origin} {said}; this qcore has hook API {API_VERSION}. "
            f"Install a release of the backend for it; its author sets "
            f"`api_version = {API_VERSION}` on {loaded.__qualname__}."
        )
    return loaded


def load_backend(name: str, options: dict[str, Any]) -> object:
    """Build a backend from its name and options, a fresh one: it belongs to one quantizer."""
    if not isinstance(name, str):
        raise UnknownBackendError(
            f"A backend is chosen by its name, got {name!r}. Installed: "
            f"{', '.join(backends()) or 'none'}."
        )
    known = backends()
    if name not in known:
        raise UnknownBackendError(_unknown(name, known))
    cls = known[name].load()
    _check_options(name, cls, options)
    return cls(**options)


def _unknown(name: str, known: dict[str, BackendInfo]) -> str:
    if not known:
        return (
            f"No backend {name!r}: none is installed. A backend is a distribution of its own: "
            f"pip install qcore-{name if name.isidentifier() else '...'}, if there is one, or "
            "write it, beginning with qcore new-backend NAME."
        )
    close = near_misses(name, known)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"No backend {name!r}.{hint} Installed: {', '.join(known)}. "
        "Other backends are distributions of their own (pip install qcore-...)."
    )


def _check_options(name: str, cls: type, options: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    problem = unknown_options(f"Backend {name!r}", options, parameters)
    if problem:
        raise BackendLoadError(problem)
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise BackendLoadError(
            f"Backend {name!r} needs the option {', '.join(map(repr, missing))}: "
            f"qcore.get_quantizer({name!r}, {missing[0]}=...)."
        )


def extensions(manager: pluggy.PluginManager) -> None:
    """Register every installed extension; one that is broken warns once and is skipped."""
    for entry_point in entry_points(EXTENSIONS):
        try:
            loaded = entry_point.load()
            manager.register(loaded() if inspect.isclass(loaded) else loaded, entry_point.name)
            manager.check_pending()  # A misspelt hook would never be called.
        except Exception as error:
            if manager.has_plugin(entry_point.name):
                manager.unregister(name=entry_point.name)
            key = f"{entry_point.name}={entry_point.value}"
            if key not in _warned_extensions:
                _warned_extensions.add(key)
                warn(
                    f"The extension {entry_point.name!r} of {_origin(entry_point)} is skipped: "
                    f"{type(error).__name__}: {error}"
                )
