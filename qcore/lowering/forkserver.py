"""A process that has imported what children need, and forks one of them for each request.

To import torch takes longer than to run most programs: it is done once. A child's environment, what
it imports and how it dies are its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

__all__ = ["ForkServer", "Forked"]

# The first two become the child's standard input, and its standard output and error.
_DESCRIPTORS = 5


class Forked:
    """A child of the server, with as much of ``subprocess.Popen`` as is needed.

    Attributes:
        pid: Its number, and that of its process group.
        stdin: Where requests are written.
    """

    def __init__(self, pid: int, stdin: IO[bytes], status: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self._status = status
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the child runs."""
        return self._code_within(0)

    def wait(self) -> int:
        """Wait until the child has ended, and return its exit status."""
        code = self._code_within(None)
        assert code is not None
        return code

    def _code_within(self, seconds: float | None) -> int | None:
        if self._code is None and select.select([self._status], [], [], seconds)[0]:
            # Without a word the server was killed, and most likely its children were, too.
            self._code = int(os.read(self._status, 16) or -signal.SIGKILL)
            os.close(self._status)
        return self._code


class ForkServer:
    """The caller's side.

    Args:
        preload: Modules that the server imports once for all. They may start no threads.
        env: All of the server's environment.
        log: Where the server says what goes wrong in it.
    """

    def __init__(self, preload: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        # Apple's frameworks do not survive a fork: there each child imports for itself.
        modules = preload if sys.platform == "linux" else ()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # deaf to the user's Ctrl-C
                env=dict(env),
            )

    def fork(
        self, start: Path, log: IO[bytes], descriptors: Sequence[int], timeout_s: float
    ) -> Forked:
        """Start a child.

        Args:
            start: A JSON file: the ``file`` to execute, its ``arguments``, to which the numbers of
                the descriptors are added, its ``environ`` and its ``path`` of modules.
            log: Takes what the child prints.
            descriptors: Two that the child inherits.
            timeout_s: Longest time in seconds for the server's answer.

        Returns:
            The child.

        Raises:
            OSError: The server has ended, or does not answer.
        """
        stdin, ours = os.pipe()
        status, theirs = os.pipe()
        given = [stdin, log.fileno(), *descriptors, theirs]
        try:
            with self._lock:
                self._control.settimeout(timeout_s)
                socket.send_fds(self._control, [os.fsencode(start)], given)
                answer = self._control.recv(16)
            if not answer:
                raise ConnectionError("the server of children has ended")
        except BaseException:
            self.close()
            os.close(ours)
            os.close(status)
            raise
        finally:
            os.close(stdin)
            os.close(theirs)
        return Forked(int(answer), os.fdopen(ours, "wb"), status)

    @property
    def is_closed(self) -> bool:
        """Whether a request has failed, after which the server is of no use."""
        return self._control.fileno() < 0

    def close(self) -> None:
        """End the server; its children go on."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def _serve(control: socket.socket, preload: Sequence[str]) -> None:
    for module in preload:
        with contextlib.suppress(ImportError):  # a child that needs it says so
            importlib.import_module(module)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready = select.select([control.fileno(), ended], [], [])[0]
        if ended in ready:
            os.read(ended, 512)
            _report_ended(running)
        if control.fileno() in ready:
            start, descriptors, *_ = socket.recv_fds(control, 4096, _DESCRIPTORS)
            if not start:
                return
            with warnings.catch_warnings(action="ignore"):  # of threads that live through no fork
                pid = os.fork()
            if pid == 0:
                for descriptor in (control.detach(), ended, wake, *running.values()):
                    os.close(descriptor)
                _become(os.fsdecode(start), descriptors)
            running[pid] = descriptors.pop()
            for descriptor in descriptors:
                os.close(descriptor)
            control.send(str(pid).encode())


def _report_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            descriptor = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _become(start: str, descriptors: Sequence[int]) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # killed as a group
        stdin, log, *inherited, status = descriptors
        os.close(status)
        for descriptor, standard in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, standard)
        given: dict[str, Any] = json.loads(Path(start).read_text(encoding="utf-8"))
        os.environ.clear()
        os.environ.update(given["environ"])
        sys.path[:] = given["path"]
        sys.argv[:] = [given["file"], *given["arguments"], *map(str, inherited)]
        runpy.run_path(given["file"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
