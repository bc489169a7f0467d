"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from qcore.errors import LoweringError, QcoreError

__all__ = ["check_writable", "write_whole"]


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
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(data)
        if target.exists():
            shutil.copymode(target, fresh)
        os.replace(fresh, target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
