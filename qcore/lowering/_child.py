"""The process that executes a program; started by ``qcore.lowering.runner``, never imported.

It reads one JSON request a line on standard input and answers with one JSON line on the descriptor
it was given. Tensors travel in files of the working folder. Whatever the runtime prints goes to the
log file that the parent opened for it.

It imports no more than torch and the runtime's extension module: ``executorch.runtime`` would pull
in ExecuTorch's whole compiler, which takes three seconds more.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

__all__: list[str] = []

_PYBINDINGS = "executorch.extension.pybindings"


class _Refusal(Exception):
    """An answer that is an error: its kind and its text."""

    def __init__(self, kind: str, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.answer = {"status": kind, "text": text, **facts}


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel end this process when the parent's end of a pipe closes.

    A thread that watches the pipe would not do: native code may hold the interpreter's lock for
    as long as a program runs.
    """
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action is to terminate
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _import_runtime() -> Any:
    import torch  # the extension module finds libtorch through it  # noqa: F401

    try:
        return importlib.import_module(f"{_PYBINDINGS}._portable_lib")
    except ImportError as direct:
        try:
            return importlib.import_module(f"{_PYBINDINGS}.portable_lib")
        except ImportError:
            raise _Refusal("no_runtime", f"{type(direct).__name__}: {direct}") from direct


def _prepare(config: dict[str, Any]) -> Any:
    runtime = _import_runtime()
    for name in config["modules"]:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise _Refusal("no_module", f"{type(error).__name__}: {error}", module=name) from error
    present = list(runtime._get_registered_backend_names())
    missing = [name for name in config["backends"] if name not in present]
    if missing:
        raise _Refusal("no_backend", ", ".join(missing), present=present)
    if config["threads"] is not None:
        runtime._unsafe_reset_threadpool(config["threads"])
    return runtime


class _Server:
    """Loads one program and answers requests about it."""

    def __init__(self, runtime: Any, program_path: str) -> None:
        self._runtime = runtime
        # The extension keeps no reference to what it loads a method from.
        self._program = self._guard(
            runtime._load_program,
            program_path,
            program_verification=runtime.Verification.InternalConsistency,
        )
        count = self._program.num_methods()
        self._names = [self._program.get_method_name(index) for index in range(count)]
        self._methods: dict[str, Any] = {}

    @staticmethod
    def _guard(call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            raise _Refusal("refused", str(error)) from error

    def _method(self, name: str) -> Any:
        if name not in self._names:
            raise _Refusal("no_method", name, present=self._names)
        if name not in self._methods:
            self._methods[name] = self._guard(self._program.load_method, name)
        return self._methods[name]

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        method = self._method(request["method"])
        inputs = torch.load(request["inputs"], weights_only=True)
        outputs = self._guard(method, inputs)
        torch.save(list(outputs), request["outputs"])
        return {"status": "ok"}

    def benchmark(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        method = self._method(request["method"])
        inputs = torch.load(request["inputs"], weights_only=True)
        seconds = []
        for index in range(request["warmup"] + request["runs"]):
            start = time.perf_counter()
            self._guard(method, inputs, clone_outputs=False)
            if index >= request["warmup"]:
                seconds.append(time.perf_counter() - start)
        return {"status": "ok", "seconds": seconds}


def main(folder: str, answers: int, lifeline: int) -> None:
    """Answer requests until standard input ends.

    Args:
        folder: The working folder; it holds ``config.json`` and the program.
        answers: The file descriptor to write answers to.
        lifeline: The read end of a pipe whose other end only the parent holds.
    """
    _die_with_parent(lifeline)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))

    def answer(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    try:
        server = _Server(_prepare(config), config["program"])
    except _Refusal as refusal:
        answer(refusal.answer)
        return
    answer({"status": "ok", "methods": server._names})
    operations = {"run": server.run, "benchmark": server.benchmark}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            reply = operations[request["op"]](request)
        except _Refusal as refusal:
            reply = refusal.answer
        sys.stderr.flush()
        answer(reply)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
