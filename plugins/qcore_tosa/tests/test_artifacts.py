"""What goes through a compiler is kept, and written to files."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcore.compat import Change, patching
from qcore.errors import LoweringError, RuntimeExecutionError
from qcore_tosa.artifacts import Compilation, recorded_compilations, save_numbered
from qcore_tosa.reference import _ReferenceProcess


def test_a_compiler_is_replaced_and_put_back_even_after_an_error(monkeypatch):
    def original(tosa):
        return tosa.upper()

    backend = SimpleNamespace(compile=original)
    monkeypatch.setitem(sys.modules, "compiling_backend", backend)
    monkeypatch.setattr(patching, "_REQUIREMENTS", [])
    compiler = Change("here", "qcore-tosa", ">=0", "compiling_backend", ["compile"], why="a test.")

    def compile_(compiler, tosa):
        return Compilation(tosa, compiler(tosa))

    with (
        contextlib.suppress(ZeroDivisionError),
        recorded_compilations(compiler, compile_) as found,
    ):
        assert backend.compile(b"graph") == b"GRAPH"
        assert found[b"GRAPH"].tosa == b"graph"
        raise ZeroDivisionError
    assert backend.compile is original


def test_one_content_gets_the_name_and_several_get_their_own(tmp_path):
    target = tmp_path / "model.tosa"
    assert save_numbered(target, {"a": b"1"}) == (target,)
    files = save_numbered(target, {"a": b"1", "true.b": b"2"})
    assert [file.name for file in files] == ["model.a.tosa", "model.true.b.tosa"]
    assert files[1].read_bytes() == b"2"


def test_nothing_to_save_and_folders_that_do_not_exist_are_errors(tmp_path):
    with pytest.raises(LoweringError, match="no delegate"):
        save_numbered(tmp_path / "model.tosa", {})
    with pytest.raises(LoweringError, match="does not exist"):
        save_numbered(tmp_path / "none" / "model.tosa", {"a": b"1"})


def test_a_graph_that_the_reference_model_cannot_read_is_an_error_and_no_crash():
    process = _ReferenceProcess({"0.tosa": b"no graph"}, 60)
    try:
        with pytest.raises(RuntimeExecutionError, match="reference model refused"):
            process.execute("0.tosa", [])
    finally:
        process.close()


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.tosa"
    save_numbered(target, {"a": b"before"})

    def full(file: Path, data: bytes) -> int:
        with file.open("wb") as opened:
            opened.write(data[:1])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LoweringError, match="No space left"):
        save_numbered(target, {"a": b"after"})
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]
