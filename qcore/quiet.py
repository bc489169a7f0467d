"""Keeping the noise of the compiler's stack away from the user, but not from who asks for it."""

from __future__ import annotations

import gc
import logging
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from qcore.sharing import shared

__all__ = ["HIDDEN", "quiet", "quieten", "spared_gc"]

# New objects between two collections, and collections between those of older ones.
_RARELY = (200_000, 20, 20)
_LIBRARIES = {"torch", "torchao"}
# They stand in for a library whose C code they call back from.
_GO_BETWEENS = ("copyreg", "functools", "contextlib", "importlib", "<frozen importlib")
# Said at every import, of names that torchao registers; nothing can be done about it here.
_IDLE = ("torch.utils._pytree",)
# Logged as an error, and raised, too: whoever catches that says what there is to say.
_RAISED = ("torch._subclasses.fake_tensor",)
# It writes files for those who ask for them. Only once it may write does it see that nobody does,
# and goes; until then torch prints every graph for it.
_UNSEEN = ("torch.__trace",)
_QUIET = ContextVar("quiet", default=False)
_WARNED = ContextVar("warned", default="")

HIDDEN: deque[str] = deque(maxlen=2000)
"""The last lines that were hidden; the command line keeps them where it fails."""


class _LibraryNoise(logging.Filter):
    """Drops what a library logs below the level of an error in a thread that is quiet."""

    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.name in _RAISED
        if not _QUIET.get() or (record.levelno >= logging.ERROR and not raised):
            return True
        # Libraries also log through the root logger, where only the path tells who spoke.
        path = record.pathname.replace("\\", "/")
        by_name = record.name.split(".")[0] in _LIBRARIES
        if not by_name and not any(f"site-packages/{name}/" in path for name in _LIBRARIES):
            return True
        # Each handler asks about a record.
        if record.name in _IDLE or hasattr(record, "kept_by_qcore"):
            return False
        record.kept_by_qcore = True
        with suppress(Exception):  # Whose arguments do not fit is not heard of without us, either.
            HIDDEN.append(f"{record.levelname} {record.name}: {record.getMessage()}")
        return False


def _handlers() -> list[logging.Handler]:
    found = list(logging.getLogger().handlers)
    if logging.lastResort is not None:
        found.append(logging.lastResort)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger) or name in _UNSEEN:
            continue
        if name.split(".")[0] in _LIBRARIES:
            found.extend(logger.handlers)
    return found


def quieten(library: str) -> None:
    """Let :func:`quiet` hide the noise of one more library.

    Args:
        library: The name of its package.
    """
    _LIBRARIES.add(library)


class _AnyText:
    """Stands in a warning filter for the text, which is asked before the module: remembers it."""

    def match(self, text: str) -> bool:
        _WARNED.set(text)
        return True


class _LibraryModules:
    """Stands in a warning filter for the name of a module: a library's, in a thread that is quiet.

    The modules of all other threads, and all other modules, do not match.
    """

    def match(self, module: str) -> bool:
        hides = _QUIET.get() and module.startswith((*_LIBRARIES, *_GO_BETWEENS))
        if hides:
            HIDDEN.append(f"WARNING {module}: {_WARNED.get()}")
        return hides


@shared
@contextmanager
def _filters() -> Iterator[None]:
    root = logging.getLogger()
    # Without a handler on the root, logging.info() of a library would install one for good.
    placeholder = None if root.handlers else logging.NullHandler()
    noise = _LibraryNoise()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hides = ("ignore", _AnyText(), Warning, _LibraryModules(), 0)
        warnings.filters[0] = hides  # type: ignore[index]
        if placeholder is not None:
            root.addHandler(placeholder)
        handlers = _handlers()
        for handler in handlers:
            handler.addFilter(noise)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(noise)
            if placeholder is not None:
                root.removeHandler(placeholder)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings and log records of torch, torchao and what :func:`quieten` names.

    Those of other threads, warnings that point at other code, errors that a library logs, and the
    records of other loggers are shown as before.

    Yields:
        Nothing.
    """
    with _filters:
        token = _QUIET.set(True)
        try:
            yield
        finally:
            _QUIET.reset(token)


@contextmanager
def spared_gc() -> Iterator[None]:
    """Spare the cyclic garbage collector what there is already, and let it look at the rest rarely.

    Graphs mostly grow while they are compiled: it would go through all of them again and again.
    Without it, the copies of weights that it does find would add up.

    Yields:
        Nothing.
    """
    with _rare_collections:
        yield


@shared
@contextmanager
def _rare_collections() -> Iterator[None]:
    thresholds, freezes = gc.get_threshold(), gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    if thresholds[0]:
        gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if freezes:
            gc.unfreeze()
