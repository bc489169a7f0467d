"""The process that executes a program; started by ``qcore_executorch.runner``, never imported.

Tensors travel in files of the working folder.

It imports no more than torch and the runtime's extension module: ``executorch.runtime`` would pull
in ExecuTorch's whole compiler, which takes three seconds more.
"""

from __future__ import annotations

import importlib
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from qcore.lowering.exchange import read_values, write_values
from qcore.lowering.serving import Operations, Refusal, serve

__all__: list[str] = []

_PYBINDINGS = "executorch.extension.pybindings"
#: The extension module of ExecuTorch 1.5, that of 1.4, and the module around it, which imports the
#: compiler first.
_RUNTIMES = ("_C", "_portable_lib", "portable_lib")
_PROGRAM = "program.pte"

#: Package -> the library in it that registers its kernels; its own module for that imports torch's
#: compiler first, which takes seconds.
_LIBRARIES = {"executorch.extension.llm.custom_ops": "libcustom_ops_aot_lib.so"}


def _import_runtime() -> Any:
    import torch  # the extension module finds libtorch through it  # noqa: F401

    *extensions, around = _RUNTIMES
    for name in extensions:
        with suppress(ImportError):
            return importlib.import_module(f"{_PYBINDINGS}.{name}")
    try:
        return importlib.import_module(f"{_PYBINDINGS}.{around}")
    except ImportError as error:
        raise Refusal("no_runtime", f"{type(error).__name__}: {error}") from error


def _prepare(config: dict[str, Any]) -> Any:
    runtime = _import_runtime()
    for name in config["modules"]:
        try:
            module = importlib.import_module(name)
            if name in _LIBRARIES:
                _load(Path(str(module.__file__)).with_name(_LIBRARIES[name]))
        except Exception as error:
            raise Refusal("no_module", f"{type(error).__name__}: {error}", module=name) from error
    present = list(runtime._get_registered_backend_names())
    missing = [name for name in config["backends"] if name not in present]
    if missing:
        raise Refusal("no_backend", ", ".join(missing), present=present)
    if config["threads"] is not None:
        runtime._unsafe_reset_threadpool(config["threads"])
    return runtime


def _load(library: Path) -> None:
    import torch

    torch.ops.load_library(library)


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
            raise Refusal("refused", str(error)) from error

    def _method(self, name: str) -> Any:
        if name not in self._names:
            raise Refusal("no_method", name, present=self._names)
        if name not in self._methods:
            self._methods[name] = self._guard(self._program.load_method, name)
        return self._methods[name]

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        method = self._method(request["method"])
        inputs = read_values(request["inputs"])
        outputs = self._guard(method, inputs)
        write_values(request["outputs"], outputs)
        return {}

    def benchmark(self, request: dict[str, Any]) -> dict[str, Any]:
        method = self._method(request["method"])
        inputs = read_values(request["inputs"])
        seconds = []
        for index in range(request["warmup"] + request["runs"]):
            start = time.perf_counter()
            self._guard(method, inputs, clone_outputs=False)
            if index >= request["warmup"]:
                seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


def _start(folder: Path, config: dict[str, Any]) -> Operations:
    server = _Server(_prepare(config), str(folder / _PROGRAM))
    return {"run": server.run, "benchmark": server.benchmark}


if __name__ == "__main__":
    serve(sys.argv[1:], _start)
