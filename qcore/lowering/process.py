"""A child process that does one job: start it, ask it, outlive it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

from qcore.errors import RuntimeCrashError, RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering.forkserver import Forked, ForkServer
from qcore.quiet import HIDDEN

__all__ = ["ChildProcess"]

_LOG, _TAIL_LINES = "child.log", 8
_LOCK = threading.Lock()
_SERVERS: dict[Hashable, ForkServer] = {}


def _file_of(module: str) -> str:
    """Return the file of a module of a package that is imported here, or can be."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return spec.origin


def _surroundings(env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return a child's environment, and where it looks for modules."""
    # The child sees the modules that this process sees, and not those of the current folder.
    here = str(Path(__file__).resolve().parents[2])
    paths = [*env.get("PYTHONPATH", "").split(os.pathsep), here]
    paths = [path for path in (*paths, *(os.path.abspath(p) for p in sys.path if p)) if path]
    environ = {
        **os.environ,
        **env,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONFAULTHANDLER": "",  # its stack dump would bury what the runtime said last
    }
    return environ, paths


def _server(env: Mapping[str, str], preload: Sequence[str], log: IO[bytes]) -> ForkServer:
    """Return the server of children with these variables, made where there is none that lives."""
    key = (os.getpid(), tuple(preload), tuple(sorted(env.items())))
    with _LOCK:
        if key not in _SERVERS or _SERVERS[key].is_closed:
            modules = ("qcore.lowering.serving", *preload)
            _SERVERS[key] = ForkServer(modules, _surroundings(env)[0], log)
        return _SERVERS[key]


class ChildProcess:
    """One process that answers requests; what it prints is kept for messages.

    Args:
        server: The module whose file is started, and calls ``qcore.lowering.serving.serve``.
        files: Contents of the files that it finds in its working folder, by name.
        config: Its configuration, as plain data.
        env: Environment variables the child gets on top of this process's own.
        timeout_s: Longest time in seconds for the start and for each request.

    Raises:
        RuntimeUnavailableError: What the child needs is missing.
        RuntimeExecutionError: The child refuses its files, or the start takes too long.
        RuntimeCrashError: The child died while it started.
    """

    #: Beginnings of lines that the child prints on every start, wrong or right.
    noise: ClassVar[tuple[str, ...]] = ()

    #: Modules that take long to import and start no threads, such as torch: imported once, for all
    #: children with the same ``env``.
    preload: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        server: str,
        *,
        files: Mapping[str, bytes],
        config: Mapping[str, Any],
        env: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._pending = b""
        self._log_at = 0
        self.folder = Path(tempfile.mkdtemp(prefix="qcore-run-"))
        self._log = self.folder / _LOG
        try:
            for name, content in files.items():
                (self.folder / name).write_bytes(content)
            (self.folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
            self._start(server, env)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.close = weakref.finalize(
            self, _end, self._process, (self._answers, self._lifeline), self.folder, self.noise
        )
        try:
            reply = self._read("start")
            if reply["status"] != "ok":
                raise self._refusal(reply)
        except BaseException:
            self.close()
            raise

    @classmethod
    def prepare(cls, env: Mapping[str, str]) -> None:
        """Import what children need while the caller does something else.

        A child that is started before that is done waits for it.

        Args:
            env: As for the children.
        """
        # Whoever starts a child is told what prevents it.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as log:
            _server(env, cls.preload, log)

    def _start(self, server: str, env: Mapping[str, str]) -> None:
        answers, child_answers = os.pipe()
        child_lifeline, lifeline = os.pipe()
        environ, paths = _surroundings(env)
        start = {
            "file": _file_of(server),
            "arguments": [str(self.folder)],
            "environ": environ,
            "path": paths,
        }
        (self.folder / "start.json").write_text(json.dumps(start), encoding="utf-8")
        try:
            with self._log.open("wb") as log:
                inherited = (child_answers, child_lifeline)

                def forked() -> Forked:
                    forking = _server(env, self.preload, log)
                    return forking.fork(self.folder / "start.json", log, inherited, self._timeout_s)

                try:
                    self._process = forked()
                except TimeoutError:
                    raise
                except OSError:  # The server has died since it was last asked; there is another.
                    self._process = forked()
        except OSError as error:
            os.close(answers)
            os.close(lifeline)
            raise RuntimeExecutionError(
                f"No process could be started within {self._timeout_s:g} s ({error}). Free memory, "
                f"or give the runner a larger timeout_s.{self._tail()}"
            ) from error
        finally:
            os.close(child_answers)
            os.close(child_lifeline)
        self._answers, self._lifeline = answers, lifeline

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Args:
            request: The operation and its options, as plain data.

        Returns:
            The child's answer.

        Raises:
            RuntimeExecutionError: The runtime refused, did not answer in time, or was closed.
            RuntimeCrashError: The child died.
        """
        if not self.close.alive:
            raise RuntimeExecutionError(
                "The session is closed: an earlier run ended its process, or its with block is "
                "over. Open another one with program.session()."
            )
        self._log_at = self._log.stat().st_size
        operation = str(request["op"])
        try:
            try:
                self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                self._fail_dead(operation)
            reply = self._read(operation)
        except BaseException:
            # After an interrupt the next answer on the pipe would be that of this request.
            self.close()
            raise
        if reply["status"] != "ok":
            raise self._refusal(reply)
        return reply

    def _read(self, operation: str) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                _kill(self._process)
                raise RuntimeExecutionError(
                    f"The program did not finish ({operation}) within {self._timeout_s:g} s; its "
                    f"process was killed. Give the runner a larger timeout_s.{self._tail()}"
                )
            chunk = os.read(self._answers, 65536)
            if not chunk:
                self._fail_dead(operation)
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _fail_dead(self, operation: str) -> NoReturn:
        code = self._process.wait()
        doing = "loaded the program" if operation == "start" else f"executed it ({operation})"
        if code >= 0:
            raise RuntimeExecutionError(
                f"The runtime's process ended with exit status {code} while it {doing}. "
                "Mend what its last lines say, or what the runner's env and modules change in it."
                f"{self._tail()}"
            )
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        raise RuntimeCrashError(
            f"The runtime's process died of {name} while it {doing}; this process is unharmed. "
            "Lower the model again and compare with result.model(*inputs); if the program is "
            "sound, report the crash to the runtime's maintainers with the program and the inputs."
            f"{self._tail()}"
        )

    def _refusal(self, reply: Mapping[str, Any]) -> RuntimeExecutionError | RuntimeUnavailableError:
        return RuntimeExecutionError(f"{reply['text']}{self._tail()}")

    def _tail(self) -> str:
        lines = _said(self._log, self._log_at, self.noise)[-_TAIL_LINES:]
        return "".join(f"\n  | {line}" for line in lines)


def _said(log: Path, start: int, noise: tuple[str, ...]) -> list[str]:
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip() and not line.startswith(noise)]


def _kill(process: Forked) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _end(
    process: Forked, descriptors: tuple[int, ...], folder: Path, noise: tuple[str, ...]
) -> None:
    _kill(process)
    with contextlib.suppress(OSError):
        HIDDEN.extend(_said(folder / _LOG, 0, noise))
    # A request that the child never read may still be buffered.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    for descriptor in descriptors:
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
