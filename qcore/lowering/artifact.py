"""Kinds of artifacts: how a saved program is recognized, and what runs it.

A distribution whose programs can be read back names its :class:`Artifact` in the entry-point group
``qcore.artifacts``, under the suffix of its files.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from qcore.errors import RuntimeExecutionError, RuntimeUnavailableError
from qcore.registry import entry_points

if TYPE_CHECKING:
    from qcore.lowering.runner import Runner

__all__ = ["ARTIFACTS", "Artifact", "artifact_of", "read_artifact"]

#: The entry-point group of artifact formats.
ARTIFACTS: Final = "qcore.artifacts"


class Artifact(Protocol):
    """Programs of one format.

    What reads them must not mind bytes behind their end: there :mod:`qcore.lowering.saved` writes.
    A format may have ``loaded(program, saved)``, too, which is asked where the backend has none:
    it gives a :class:`~qcore.lowering.LoweredProgram` that was read from a file the runner that
    :attr:`Saved.needs <qcore.lowering.Saved.needs>` asks for.

    Attributes:
        suffix: The suffix of its files, with the dot.
    """

    suffix: str

    def recognizes(self, buffer: bytes) -> bool:
        """Say whether bytes begin as such a program does."""
        ...

    def check(self, buffer: bytes, source: str) -> None:
        """Raise unless bytes are a whole program.

        Args:
            buffer: The bytes.
            source: Where they come from, for the message.

        Raises:
            RuntimeExecutionError: They are none, or some are missing.
        """
        ...

    def operators(self, buffer: bytes) -> Counter[str]:
        """Return the operators that the backend's compiler did not take, with how often.

        The conformance suite compares them with the program's report. A program without delegates
        has here what it computes in float beside its integers, quantizing included.

        Their names are those of the lowered graph without the overload, as ``aten.add``.
        """
        ...

    def runner(self, buffer: bytes) -> Runner | None:
        """Return what executes a program on this machine; ``None`` where no host can."""
        ...


def artifact_of(buffer: bytes, source: str = "the program") -> Artifact:
    """Find the format of a program among those that installed distributions read.

    Args:
        buffer: The program's bytes.
        source: Where they come from, for the message; its suffix says which format is asked first.

    Returns:
        The format, which has checked the bytes.

    Raises:
        RuntimeExecutionError: No format recognizes the bytes, or some are missing.
        RuntimeUnavailableError: No installed distribution reads programs.
    """
    points = list(entry_points(ARTIFACTS))
    if not points:
        raise RuntimeUnavailableError(
            f"No installed distribution reads {source}. Programs are read by the backend that made "
            "them, or by what it is built on: install it."
        )
    suffix = Path(source).suffix.removeprefix(".")
    points.sort(key=lambda point: point.name != suffix)
    for point in points:
        artifact: Artifact = point.load()
        if artifact.recognizes(buffer):
            artifact.check(buffer, source)
            return artifact
        if point.name == suffix:
            artifact.check(buffer, source)  # It knows best what is wrong with it.
    known = ", ".join(f".{point.name}" for point in points)
    raise RuntimeExecutionError(
        f"{source} is no program that an installed backend reads ({known}). Pass a file written by "
        "LoweredProgram.save(), and install the backend that it was made for."
    )


def read_artifact(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file, unchecked; RuntimeExecutionError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeExecutionError(
            f"Cannot read a program from {os.fspath(path)}: {error.strerror or error}. "
            "Pass the path of a file written by LoweredProgram.save()."
        ) from error
