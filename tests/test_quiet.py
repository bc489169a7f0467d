"""What is hidden, where a warning points, and what other threads see of it."""

from __future__ import annotations

import gc
import linecache
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

import qcore
from qcore.lowering import ChildProcess
from qcore.quantizer import Quantizer
from qcore.quiet import HIDDEN, quiet, spared_gc

# As of a library: its module decides what a warning points at, its name what a record is of.
_LIBRARY: dict[str, Any] = {"__name__": "torchao.somewhere"}
exec("import warnings\ndef warn(): warnings.warn('noise', stacklevel=1)", _LIBRARY)


class _Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(4, 4)
        self.other = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, self.one, self.other, (x,))


def _line(caught: pytest.WarningsRecorder) -> str:
    return linecache.getline(caught[0].filename, caught[0].lineno).strip()


def _elsewhere(look: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(look).result(timeout=10)


def test_nothing_quantized_in_the_standard_flow_points_at_its_line(
    toy: Callable[[], Quantizer], capture: Any
) -> None:
    graph = capture(torch.nn.Linear(4, 4), torch.rand(1, 4))
    with pytest.warns(qcore.QcoreWarning, match="Nothing is quantized") as caught:
        prepare_pt2e(graph, toy())
    assert _line(caught) == "prepare_pt2e(graph, toy())"


def test_a_branch_that_no_sample_reaches_points_at_the_line_that_quantizes(
    toy: Callable[[], Quantizer],
) -> None:
    quantizer, samples = toy().set_global("8a8w"), [torch.arange(4.0).reshape(1, 4)]
    with pytest.warns(qcore.QcoreWarning, match="No calibration sample reached") as caught:
        qcore.quantize(_Branches(), quantizer, samples)
    assert _line(caught) == "qcore.quantize(_Branches(), quantizer, samples)"


def test_a_broken_extension_points_at_the_line_that_builds_a_quantizer(
    toy: Callable[[], Quantizer], install: Callable[..., None]
) -> None:
    source = "raise RuntimeError('broken')"
    install("pointing", "pointing_ext", source, group="qcore.extensions", pointing="pointing_ext:X")
    with pytest.warns(qcore.QcoreWarning, match="'pointing'.*is skipped") as caught:
        qcore.get_quantizer("toy")
    assert _line(caught) == 'qcore.get_quantizer("toy")'


def test_importing_qcore_changes_no_logger_and_no_filter() -> None:
    code = """
import logging, warnings
def state():
    loggers = [logging.root, *(logging.getLogger(n) for n in ("torchao", "torch.utils._pytree"))]
    return [(l.level, list(l.filters), list(l.handlers)) for l in loggers], list(warnings.filters)
import torch, torchao
before = state()
import qcore
[getattr(qcore, name) for name in qcore.__all__]
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_librarys_warnings_are_hidden_from_the_thread_that_is_quiet_only() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            _LIBRARY["warn"]()
            assert not caught
            _elsewhere(_LIBRARY["warn"])
            assert len(caught) == 1
        _LIBRARY["warn"]()
    assert len(caught) == 2


def test_a_librarys_log_is_hidden_from_the_thread_that_is_quiet_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("torchao.somewhere")
    with quiet():
        logger.warning("hidden")
        _elsewhere(lambda: logger.warning("shown"))
    assert caplog.messages == ["shown"]


def test_an_error_that_is_raised_too_is_kept_and_others_are_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    HIDDEN.clear()
    with quiet():
        logging.getLogger("torch._subclasses.fake_tensor").error("raised, too")
        logging.getLogger("torchao.somewhere").error("shown")
    assert caplog.messages == ["shown"]
    assert list(HIDDEN) == ["ERROR torch._subclasses.fake_tensor: raised, too"]
    HIDDEN.clear()


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_threads_that_overlap_leave_warnings_and_the_garbage_collector_as_they_were(
    first_to_leave: int,
) -> None:
    before = (list(warnings.filters), gc.get_threshold(), gc.get_freeze_count())
    stacks = [ExitStack(), ExitStack()]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads = [one, other]
        for thread, stack in zip(threads, stacks, strict=True):
            for context in (quiet(), spared_gc()):
                thread.submit(stack.enter_context, context).result(timeout=10)
        for index in (first_to_leave, 1 - first_to_leave):
            threads[index].submit(stacks[index].close).result(timeout=10)
    assert (list(warnings.filters), gc.get_threshold(), gc.get_freeze_count()) == before


def test_what_a_child_process_says_is_kept_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chatty.py").write_text(
        "import sys; from qcore.lowering.serving import serve\n"
        "print('words of a runtime', file=sys.stderr)\n"
        "serve(sys.argv[1:], lambda folder, config: {})"
    )
    monkeypatch.syspath_prepend(tmp_path)
    HIDDEN.clear()
    ChildProcess("chatty", files={}, config={}, env={}, timeout_s=60).close()
    assert list(HIDDEN) == ["words of a runtime"]
    HIDDEN.clear()


def test_graphs_are_printed_for_no_trace_that_nobody_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._logging import _internal as logs

    printed = []
    monkeypatch.setattr(logs.trace_log, "handlers", [logs.LazyTraceHandler(None)])
    with quiet():
        for _ in range(2):
            logs.trace_structured("artifact", payload_fn=lambda: printed.append(1) or "graph")
    assert len(printed) == 1
