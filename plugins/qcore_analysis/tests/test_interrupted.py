"""What stops a command half way leaves no half file: a full disk, Ctrl-C, a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Command = Callable[..., Result]
QUANTIZE = ("quantize", "shop:net", "--backend", "xnnpack", "--calibration", "rows.npz")
#: Each file that commands write, and the option that asks for it.
FILES = {
    "half.npz": "-o",
    "half.pte": "-o",
    "half.qpt2": "-o",
    "half.html": "--report",
    "half.toml": "--save-recipe",
    "half.json": "--node-data",
}
WRITING = pytest.mark.parametrize("name", FILES)


def written(name: str, program: Path, qcore: Command, folder: Path) -> Result:
    """Run the command that writes a file into a folder."""
    asked = (FILES[name], folder / name)
    if name.endswith(".npz"):
        return qcore("run", program, "--input", "rows.npz", *asked)
    whole = () if FILES[name] == "-o" else ("-o", folder / "whole.pte")
    return qcore(*QUANTIZE, *whole, *asked)


def left(folder: Path) -> set[str]:
    """Return what is in a folder beside the file that was written before."""
    return {path.name for path in folder.iterdir()} - {"whole.pte"}


@WRITING
def test_a_full_disk_leaves_no_file(
    name: str, program: Path, qcore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if name not in self.name:
            return write(self, data)
        write(self, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = written(name, program, qcore, tmp_path)
    assert done.exit_code == 1
    assert f"{name}: No space left on device" in done.stderr
    assert left(tmp_path) == set()


def test_a_full_disk_for_what_the_runtime_reads_leaves_no_file(
    program: Path, qcore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = written("half.npz", program, qcore, tmp_path)
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr
    assert left(tmp_path) == set()


@WRITING
def test_an_interrupt_leaves_no_file(
    name: str, program: Path, qcore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupt(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", interrupt)
    done = written(name, program, qcore, tmp_path)
    assert done.exit_code != 0
    assert left(tmp_path) == set()


def test_a_kill_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from qcore.files import write_whole; "
        "os.replace = lambda *_: os.kill(os.getpid(), 9); "
        "write_whole('kept.pte', b'new', 'the program', 'x.pte')"
    )
    (tmp_path / "kept.pte").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert (done.returncode, (tmp_path / "kept.pte").read_bytes()) == (-9, b"old")
