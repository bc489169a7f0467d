"""Files are written whole or not at all, and what is no file is left what it is."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qcore.errors import LoweringError
from qcore.files import write_whole


def write(path: Path) -> Path:
    return write_whole(path, b"new", "the program", "model.pte")


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "model.pte"
    target.write_bytes(b"old")
    target.chmod(0o600)
    assert write(target).read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_now_is_not(
    tmp_path: Path,
) -> None:
    left, now = (tmp_path / f".model[1].pte.{digit * 32}" for digit in "0f")
    other = tmp_path / f".model.pte.{'0' * 32}"
    for path, age in ((left, 7200), (now, 60), (other, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    target = write(tmp_path / "model[1].pte")
    assert sorted(tmp_path.iterdir()) == sorted([target, now, other])


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "model.pte", tmp_path / "latest.pte"
    target.write_bytes(b"old")
    link.symlink_to(target.name)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        write(pipe)
        assert read.result(timeout=60) == b"new"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_device_that_is_full_is_an_error() -> None:
    with pytest.raises(LoweringError, match=r"Cannot save the program to /dev/full: No space left"):
        write(Path("/dev/full"))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
