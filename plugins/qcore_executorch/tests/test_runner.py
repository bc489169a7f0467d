"""The isolated runner: whatever happens to its child, the caller lives and is told."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import attrs
import pytest
import torch

from qcore.errors import RuntimeCrashError, RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering import Runner, process, run_program
from qcore_executorch import ExecuTorchRunner

from .conftest import FIXTURES, runner_with


def test_the_executorch_runner_is_a_runner():
    assert isinstance(ExecuTorchRunner(), Runner)


def test_a_child_that_dies_of_a_signal_is_an_error_with_its_name(program, sample):
    with pytest.raises(RuntimeCrashError, match="died of SIGSEGV") as raised:
        run_program(program.buffer, [sample], runner=runner_with("child_dies"))
    assert "the driver said this last" in str(raised.value)


def test_a_damaged_delegate_that_aborts_the_runtime_leaves_the_caller_alive(program, sample):
    # The delegate finds its weights by the hex digest in its blob; a name that is no text makes
    # the runtime's own error message unprintable, and the runtime aborts.
    segments = program.buffer.rindex(b"XN")
    key = re.search(rb"[0-9a-f]{64}", program.buffer[segments:])
    assert key is not None
    at = segments + key.start()
    damaged = program.buffer[:at] + b"\xff" + program.buffer[at + 1 :]
    with pytest.raises(RuntimeCrashError, match="died of SIGABRT"):
        run_program(damaged, [sample])


def test_a_crash_in_a_session_closes_it(program, sample):
    with ExecuTorchRunner().session(program.buffer) as session:
        child = session._child._process.pid
        os.kill(child, signal.SIGKILL)
        with pytest.raises(RuntimeCrashError, match="died of SIGKILL"):
            session.run([sample])
        with pytest.raises(RuntimeExecutionError, match="session is closed"):
            session.run([sample])


def test_a_child_that_exits_early_is_an_error_with_its_status(program, sample):
    with pytest.raises(RuntimeExecutionError, match="exit status 7"):
        run_program(program.buffer, [sample], runner=runner_with("child_exits"))


def test_a_child_that_hangs_is_killed_after_the_timeout(program, sample):
    start = time.monotonic()
    with pytest.raises(RuntimeExecutionError, match=r"within 3 s; its process was killed"):
        run_program(program.buffer, [sample], runner=runner_with("child_hangs", timeout_s=3))
    assert time.monotonic() - start < 10


def test_a_backend_that_the_runtime_lacks_is_named_with_those_it_has(program, sample):
    runner = ExecuTorchRunner(backends=("XnnpackBackend", "VulkanBackend"))
    with pytest.raises(RuntimeUnavailableError, match=r"VulkanBackend.*has: .*XnnpackBackend"):
        run_program(program.buffer, [sample], runner=runner)


def test_a_module_that_does_not_import_is_named(program, sample):
    runner = ExecuTorchRunner(modules=("qcore_no_such_module",))
    with pytest.raises(RuntimeUnavailableError, match=r"'qcore_no_such_module'.*Install"):
        run_program(program.buffer, [sample], runner=runner)


def test_a_runtime_that_does_not_import_names_the_install(program, sample, tmp_path):
    (tmp_path / "executorch").mkdir()
    (tmp_path / "executorch" / "__init__.py").touch()
    runner = ExecuTorchRunner(env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(RuntimeUnavailableError, match="pip install qcore-executorch"):
        run_program(program.buffer, [sample], runner=runner)


def test_the_child_does_not_import_the_compiler(program, sample):
    runner = runner_with("child_has_no_compiler")
    assert len(run_program(program.buffer, [sample], runner=runner)) == 1


def test_the_child_gets_the_runner_s_environment(program, sample):
    runner = runner_with("child_proves_env")
    runner = attrs.evolve(runner, env={**runner.env, "QCORE_TEST_LAYER": "on"})
    assert len(run_program(program.buffer, [sample], runner=runner)) == 1


def test_a_variable_that_is_set_after_the_first_run_reaches_the_child(program, sample, monkeypatch):
    runner = runner_with("child_proves_env")
    with pytest.raises(RuntimeUnavailableError, match="child_proves_env"):
        run_program(program.buffer, [sample], runner=runner)
    monkeypatch.setenv("QCORE_TEST_LAYER", "on")
    assert len(run_program(program.buffer, [sample], runner=runner)) == 1


def test_children_are_started_again_when_what_forks_them_was_killed(program, sample):
    program.run(sample)
    for server in process._SERVERS.values():
        server._process.kill()
        server._process.wait()
    program.run(sample)


def test_a_prepared_session_finds_what_forks_children_at_work(program, sample):
    runner = ExecuTorchRunner(env={"QCORE_TEST_LAYER": "prepared"})
    runner.prepare()
    forking = list(process._SERVERS.values())
    run_program(program.buffer, [sample], runner=runner)
    assert list(process._SERVERS.values()) == forking


def test_a_process_that_was_forked_has_children_of_its_own(program, sample):
    expected = program.run(sample)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        output = pool.apply_async(program.run, (sample,)).get(timeout=60)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(program.run(sample), expected)


def test_the_thread_pool_has_the_size_asked_for(program, sample):
    one = run_program(program.buffer, [sample], runner=ExecuTorchRunner(threads=1))
    torch.testing.assert_close(one[0], program.run(sample))


def test_a_lone_module_name_is_one_name():
    assert ExecuTorchRunner(modules="executorch.kernels.quantized").modules == (
        "executorch.kernels.quantized",
    )


def test_what_the_runtime_refuses_comes_with_its_own_words(program, sample):
    with pytest.raises(RuntimeExecutionError, match="InvalidArgument") as raised:
        run_program(program.buffer, [sample, sample])
    assert "Expected 1, but got 2" in str(raised.value)


def test_an_unknown_method_is_refused_with_those_there_are(program, sample):
    with pytest.raises(RuntimeExecutionError, match=r"no method 'backward'\. It has: forward"):
        program.run(sample, method="backward")


def test_a_run_leaves_no_files(program, sample, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program.run(sample)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_does_not_outlive_a_killed_caller(program, tmp_path):
    path = program.save(tmp_path / "model.pte")
    script = f"""
        from qcore.lowering import run_program; from qcore_executorch import ExecuTorchRunner
        runner = ExecuTorchRunner(modules=("child_hangs",), env={{"PYTHONPATH": {FIXTURES!r}}})
        run_program({str(path)!r}, [], runner=runner)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    env["TMPDIR"] = str(tmp_path)
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=env)
    try:
        child = _wait_for(lambda: _hanging_child(tmp_path))
    finally:
        caller.kill()
        caller.wait()
    _wait_for(lambda: not Path(f"/proc/{child}").exists())


def _hanging_child(folder: Path) -> str | None:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            log = os.readlink(entry / "fd" / "1")
            system_call = (entry / "wchan").read_text()
        except OSError:
            continue
        if log.startswith(str(folder)) and "sleep" in system_call:
            return entry.name
    return None


def _wait_for(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"nothing happened within {seconds} s")
