"""Every error a user can meet.

A message says what was asked for, what is on offer, and what to do next.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

__all__ = [
    "AlreadyQuantizedError",
    "ApiVersionError",
    "BackendConflictError",
    "BackendHookError",
    "BackendLoadError",
    "CalibrationError",
    "CalibrationWarning",
    "CaptureError",
    "GroupSizeError",
    "LibraryChangedError",
    "LoweringError",
    "ModelFileError",
    "PartialQuantizationError",
    "QcoreError",
    "QcoreWarning",
    "RuntimeCrashError",
    "RuntimeExecutionError",
    "RuntimeUnavailableError",
    "ScaffoldError",
    "SelectionError",
    "UnknownBackendError",
    "UnsupportedSchemeError",
    "near_misses",
    "unknown_options",
    "warn",
]

# Packages between a user's line and what it leads to; plugins are named qcore_*.
_BETWEEN = ("contextlib", "pluggy", "qcore", "torch", "torchao")


class QcoreError(Exception):
    """Base of every error that qcore raises on purpose."""


class QcoreWarning(UserWarning):
    """Category of every warning that qcore emits."""


class CalibrationWarning(QcoreWarning):
    """The calibration samples, or how far a quantized model is from float on them, look wrong."""


class UnknownBackendError(QcoreError):
    """No installed or registered backend has the requested name."""


class BackendLoadError(QcoreError):
    """A backend cannot be used: broken import, not a class, unknown option, bad hook."""


class BackendConflictError(QcoreError):
    """Two distributions claim the same backend name."""


class ApiVersionError(BackendLoadError):
    """A backend was written for another version of the hook API."""


class BackendHookError(QcoreError):
    """A backend's hook returned something that its contract does not allow."""


class UnsupportedSchemeError(QcoreError):
    """The backend does not execute the requested quantization scheme."""


class SelectionError(QcoreError):
    """A ``set_*`` rule is malformed or matches nothing in the model."""


class GroupSizeError(UnsupportedSchemeError):
    """A group size does not fit a layer, or not the backend."""


class AlreadyQuantizedError(SelectionError):
    """What a rule selects is quantized already, in another way."""


class CaptureError(QcoreError):
    """The model cannot be captured as a graph."""


class PartialQuantizationError(QcoreError):
    """Part of the model would stay in float on a backend that does not allow it."""


class CalibrationError(QcoreError):
    """The calibration samples are missing, exhausted, not finite, or do not fit the model."""


class ModelFileError(QcoreError):
    """A quantized model cannot be written to a file, or read from one."""


class LoweringError(QcoreError):
    """The quantized model cannot be turned into a program."""


class LibraryChangedError(QcoreError):
    """An installed library no longer has what qcore changes or calls."""


class ScaffoldError(QcoreError):
    """The distribution of a new backend cannot be written."""


class RuntimeUnavailableError(QcoreError):
    """The host runtime that a program needs is not installed."""


class RuntimeExecutionError(QcoreError):
    """The runtime refused a program or its inputs."""


class RuntimeCrashError(RuntimeExecutionError):
    """The runtime's process died; the caller's process did not."""


def near_misses(name: str, candidates: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Return the candidates that look most like a mistyped name.

    Args:
        name: What the user wrote.
        candidates: The names that exist.
        limit: At most this many are returned.

    Returns:
        The closest candidates, best first; empty where none is close.
    """
    import difflib

    known = sorted(set(candidates))
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    contains = [k for k in known if name and (name in k or k in name) and k not in close]
    return tuple((close + contains)[:limit])


def unknown_options(owner: str, given: Iterable[str], known: Iterable[str]) -> str:
    """Say which of the options that somebody gave do not exist; nothing where all do.

    Args:
        owner: What has the options, for the message.
        given: Their names.
        known: The names that exist.

    Returns:
        The message, with those that exist; empty where none is unknown.
    """
    known = list(known)
    unknown = [option for option in given if option not in known]
    if not unknown:
        return ""
    close = near_misses(unknown[0], known)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    offered = ", ".join(known) or "none"
    return f"{owner} has no option {', '.join(map(repr, unknown))}.{hint} Its options: {offered}."


def warn(message: str, category: type[QcoreWarning] = QcoreWarning) -> None:
    """Emit a :class:`QcoreWarning` that points at the user's line, however deep it is noticed.

    Args:
        message: What happened, and what to do.
        category: Its class, by which users filter it.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", "qcore")):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_between(module: str) -> bool:
    package = module.partition(".")[0]
    return package in _BETWEEN or package.startswith("qcore_")
