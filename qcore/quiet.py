"""Keeping the noise of the compiler's stack away from the user, and nothing else."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from qcore.compat.patching import LIBRARIES

__all__ = ["hush", "quiet", "quieten", "spared_gc"]

# New objects between two collections, and collections between those of older ones.
_RARELY = (200_000, 20, 20)
_LIBRARIES = {"torch", "torchao"}
# They stand in for a library whose C code they call back from.
_GO_BETWEENS = ("copyreg", "functools", "contextlib", "importlib", "<frozen importlib")
# Logger -> beginnings of what it says while it is imported, which nobody can act on.
_IMPORT_NOISE = {
    "torchao": ("Failed to load", "Skipping import of cpp extensions"),
    "torch.utils._pytree": ("%s is an Enum subclass", "<enum "),
}


class _LibraryNoise(logging.Filter):
    """Drops what a library logs below the level of an error; keeps every other record."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        # Libraries also log through the root logger, where only the path tells who spoke.
        path = record.pathname.replace("\\", "/")
        by_name = record.name.split(".")[0] in _LIBRARIES
        return not by_name and not any(f"site-packages/{name}/" in path for name in _LIBRARIES)


def _handlers() -> list[logging.Handler]:
    found = list(logging.getLogger().handlers)
    if logging.lastResort is not None:
        found.append(logging.lastResort)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.split(".")[0] in _LIBRARIES:
            found.extend(logger.handlers)
    return found


def quieten(library: str) -> None:
    """Let :func:`quiet` hide the noise of one more library.

    Args:
        library: The name of its package.
    """
    _LIBRARIES.add(library)


def hush() -> None:
    """Drop what torchao and torch log when they are imported; imports neither."""
    for name in _IMPORT_NOISE:
        logging.getLogger(name).addFilter(_is_signal)


def _is_signal(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IMPORT_NOISE[record.name])


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings and log records of torch, torchao and what :func:`quieten` names.

    Warnings that point at other code, errors that a library logs, and the records of other loggers
    are shown as before.

    Yields:
        Nothing.
    """
    root = logging.getLogger()
    # Without a handler on the root, logging.info() of a library would install one for good.
    placeholder = None if root.handlers else logging.NullHandler()
    noise = _LibraryNoise()
    with LIBRARIES, warnings.catch_warnings():
        modules = "|".join(sorted({*_LIBRARIES, *_GO_BETWEENS}))
        warnings.filterwarnings("ignore", module=f"({modules})")
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
def spared_gc() -> Iterator[None]:
    """Spare the cyclic garbage collector what there is already, and let it look at the rest rarely.

    Graphs mostly grow while they are compiled: it would go through all of them again and again.
    Without it, the copies of weights that it does find would add up.

    Yields:
        Nothing.
    """
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
