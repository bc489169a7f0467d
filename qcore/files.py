"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from qcore.errors import LoweringError, QcoreError

__all__ = ["check_writable", "write_whole"]

#: Writing takes seconds: what is so much older was left by a process that was killed.
_LEFT_S: Final = 3600


def check_writable(
    path: str | os.PathLike[str], what: str, example: str, error: type[QcoreError] = LoweringError
) -> None:
    """Raise where a file could not be written, as before the work that makes what it is to hold.

    Args:
        path: The file.
        what: What it is to hold, for messages, such as "the program".
        example: A file name, for the message about a folder.
        error: What is raised.

    Raises:
        QcoreError: Of type ``error``: the folder does not exist, or the path is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise error(
            f"Cannot save {what} to {target}: the folder {target.parent} does not exist. "
            f"Create it first: mkdir -p {target.parent}, or choose another path."
        )
    if target.is_dir():
        raise error(
            f"Cannot save {what} to {target}: it is a folder. "
            f"Pass a file name, such as {target / example}."
        )


def write_whole(
    path: str | os.PathLike[str],
    data: bytes,
    what: str,
    example: str,
    error: type[QcoreError] = LoweringError,
) -> Path:
    """Write a file, whole or not at all.

    Args:
        path: The file; replaced where it exists. What a link points to is, and the link stays; a
            device or a pipe is written to.
        data: Its bytes.
        what: What it holds, for messages, such as "the program".
        example: A file name, for the message about a folder.
        error: What is raised where it cannot be written.

    Returns:
        The path.

    Raises:
        QcoreError: Of type ``error``: the folder does not exist, or the file cannot be written.
    """
    check_writable(path, what, example, error)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as cause:
        raise error(
            f"Cannot save {what} to {target}: {cause.strerror or cause}. "
            "Choose a path you can write to."
        ) from cause
    return target


def _replace(target: Path, data: bytes) -> None:
    target = target.resolve()
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    _remove_left(target)
    fresh = target.with_name(f"{_beginning(target)}{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(data)
        if target.exists():
            shutil.copymode(target, fresh)
        os.replace(fresh, target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _beginning(target: Path) -> str:
    return f".{target.name}."


def _remove_left(target: Path) -> None:
    """Remove what processes that were killed left of the same file."""
    pattern = f"{glob.escape(_beginning(target))}{'[0-9a-f]' * 32}"
    for left in target.parent.glob(pattern):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink()
