"""What takes long says so on a terminal, with the time that is left."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcore.cli.progress import step
from qcore_analysis.errors import InputError
from qcore_analysis.time_limit import time_limit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    shown, seconds = Terminal(), iter(range(100))
    # pytest sets sys.stderr again before the test.
    monkeypatch.setattr("qcore.cli.progress.sys", SimpleNamespace(stderr=shown))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    return shown


def lines(terminal: Terminal) -> list[str]:
    return [line.strip() for line in re.split(r"\r\x1b\[K|\n", terminal.getvalue()) if line]


def test_a_stage_has_its_name_while_it_lasts_and_its_time_at_the_end(terminal: Terminal) -> None:
    with step("lowering"):
        assert lines(terminal) == ["lowering ..."]
    assert lines(terminal)[1:] == ["lowering: 1.0 s"]


def test_where_the_number_of_items_is_known_the_time_that_is_left_is_told(
    terminal: Terminal,
) -> None:
    with step("executing") as over:
        assert list(over("abc")) == ["a", "b", "c"]
    assert lines(terminal)[1:4] == [
        "executing ... 1 of 3",
        "executing ... 2 of 3, 4 s left",
        "executing ... 3 of 3, 2 s left",
    ]


def test_a_step_that_nothing_counts_tells_what_is_left_of_its_last_time(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("qcore.cli.progress._EVERY_S", 0.01)
    kept = tmp_path / "qcore" / "seconds.json"
    for passed in (" s", " s left"):
        with step("reading", of="model.gguf"):
            deadline = time.monotonic() + 10
            while not lines(terminal)[-1].endswith(passed):
                assert time.monotonic() < deadline, lines(terminal)
                time.sleep(0.005)
            monkeypatch.setattr("qcore.cli.progress._EVERY_S", 60)
        assert list(json.loads(kept.read_text())) == ["reading: model.gguf"]
        kept.write_text('{"reading: model.gguf": 1000}')
        monkeypatch.setattr("qcore.cli.progress._EVERY_S", 0.01)


def test_a_file_of_times_that_is_none_is_made_anew(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "qcore" / "seconds.json"
    kept.parent.mkdir()
    kept.write_text('["no times"')
    with step("reading", of="model.gguf"):
        pass
    assert list(json.loads(kept.read_text())) == ["reading: model.gguf"]


def test_where_nothing_can_be_kept_the_step_is_shown_all_the_same(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with step("reading", of="model.gguf"):
        pass
    assert lines(terminal)[-1].startswith("reading: ")


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_to_who_wants_quiet_or_has_no_terminal(
    quiet: bool, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quiet:
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with step("executing", quiet) as over:
        assert list(over("abc")) == ["a", "b", "c"]
    assert terminal.getvalue() == ""


def test_a_time_limit_in_another_thread_is_refused_with_the_reason() -> None:
    refused: list[InputError] = []

    def limited() -> None:
        try:
            with time_limit(5):
                pytest.fail("nothing would stop it")
        except InputError as error:
            refused.append(error)

    thread = threading.Thread(target=limited, name="worker")
    thread.start()
    thread.join()
    assert "stops the main thread alone, and this is worker. Leave it out" in str(refused[0])


def test_a_time_limit_of_no_seconds_is_refused() -> None:
    with pytest.raises(InputError, match="A time limit of 0 s is none"), time_limit(0):
        pass
