"""A child process with one ExecuTorch program loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcore.errors import RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering import ChildProcess

__all__ = ["ProgramProcess"]

_ERROR_NAMES = {
    0x01: "Internal",
    0x02: "InvalidState",
    0x10: "NotSupported",
    0x11: "NotImplemented",
    0x12: "InvalidArgument",
    0x13: "InvalidType",
    0x14: "OperatorMissing",
    0x20: "NotFound",
    0x21: "MemoryAllocationFailed",
    0x22: "AccessFailed",
    0x23: "InvalidProgram",
    0x24: "InvalidExternalData",
    0x25: "OutOfResources",
    0x30: "DelegateInvalidCompatibility",
    0x31: "DelegateMemoryAllocationFailed",
    0x32: "DelegateInvalidHandle",
}
# What the runtime prints about the processor on every start, wrong or right.
_NOISE = ("[cpuinfo_utils.cpp",)


class ProgramProcess(ChildProcess):
    """One process with one ExecuTorch program loaded.

    Args:
        buffer: The program's bytes.
        env: Environment variables the child gets on top of this process's own.
        modules: Python modules the child imports before it loads the program.
        backends: Names of the ExecuTorch backends that the program calls.
        threads: Size of the runtime's thread pool; None leaves it to the runtime.
        timeout_s: Longest time in seconds for the start and for each request.

    Raises:
        RuntimeUnavailableError: The runtime, a module or a backend is missing.
        RuntimeExecutionError: The runtime refuses the program, or the start takes too long.
        RuntimeCrashError: The child died while it loaded the program.
    """

    noise = _NOISE
    preload = ("torch",)

    def __init__(
        self,
        buffer: bytes,
        *,
        env: Mapping[str, str],
        modules: Sequence[str],
        backends: Sequence[str],
        threads: int | None,
        timeout_s: float,
    ) -> None:
        config = {"modules": list(modules), "backends": list(backends), "threads": threads}
        super().__init__(
            "qcore_executorch._child",
            files={"program.pte": buffer},
            config=config,
            env=env,
            timeout_s=timeout_s,
        )

    def _refusal(self, reply: Mapping[str, Any]) -> RuntimeExecutionError | RuntimeUnavailableError:
        text = reply["text"]
        match reply["status"]:
            case "no_runtime":
                return RuntimeUnavailableError(
                    f"Running a program needs the ExecuTorch runtime, which does not import here "
                    f"({text}). Install it: pip install qcore-executorch."
                )
            case "no_module":
                return RuntimeUnavailableError(
                    f"The program's runner needs the module {reply['module']!r}, which does not "
                    f"import in the runtime's process ({text}). Install what provides it, or "
                    f"correct the runner's modules.{self._tail()}"
                )
            case "no_backend":
                present = ", ".join(sorted(reply["present"])) or "none"
                return RuntimeUnavailableError(
                    f"The program needs the ExecuTorch backend {text}, which the installed runtime "
                    f"lacks. It has: {present}. Install an ExecuTorch build with that backend, "
                    "or run the program on its device."
                )
            case "no_method":
                return RuntimeExecutionError(
                    f"The program has no method {text!r}. It has: {', '.join(reply['present'])}."
                )
        return RuntimeExecutionError(
            f"The ExecuTorch runtime refused: {_named(text)}.{_next_step(text)}{self._tail()}"
        )


def _code(text: str) -> int | None:
    _, found, digits = text.rstrip(".").rpartition("0x")
    try:
        return int(digits.lstrip(":"), 16) if found else None
    except ValueError:
        return None


def _named(text: str) -> str:
    name = _ERROR_NAMES.get(_code(text) or -1)
    return f"{text.rstrip('.')} ({name})" if name else text.rstrip(".")


def _next_step(text: str) -> str:
    steps = {
        0x14: " The program calls a kernel that is not registered: name the module that registers "
        'it in the runner\'s modules, such as "executorch.kernels.quantized".',
        0x23: " The file is damaged or of another ExecuTorch version: lower and save it again.",
    }
    return steps.get(_code(text) or -1, "")
