"""Running programs on ExecuTorch's own runtime, away from the caller's process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from qcore.lowering import Latency, Session
from qcore_executorch.header import check_pte

if TYPE_CHECKING:
    from qcore.lowering import ChildProcess

__all__ = ["ExecuTorchRunner"]


class _ExecuTorchSession:
    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        from qcore.lowering.exchange import read_values

        with self._lock:
            files = self._write(inputs)
            self._child.ask({"op": "run", "method": method, **files})
            return tuple(read_values(files["outputs"]))

    def benchmark(
        self, inputs: Sequence[Any], *, warmup: int, runs: int, method: str = "forward"
    ) -> Latency:
        if runs < 1 or warmup < 0:
            raise ValueError(f"runs must be at least 1 and warmup at least 0, got {runs}, {warmup}")
        with self._lock:
            request = {"op": "benchmark", "method": method, "warmup": warmup, "runs": runs}
            answer = self._child.ask({**request, **self._write(inputs)})
        return Latency.of(answer["seconds"])

    def _write(self, inputs: Sequence[Any]) -> dict[str, str]:
        from qcore.lowering.exchange import write_values

        files = {name: str(self._child.folder / name) for name in ("inputs", "outputs")}
        if self._child.folder.exists():
            write_values(files["inputs"], [_runtime_layout(value) for value in inputs])
        return files


def _names(names: Iterable[str]) -> tuple[str, ...]:
    # A lone name would otherwise become one name a letter.
    return (names,) if isinstance(names, str) else tuple(names)


@attrs.frozen
class ExecuTorchRunner:
    """Executes programs on ExecuTorch's own runtime, each in a child process.

    The environment of a process is read when it starts and a native fault ends it; both are
    reasons to keep the runtime out of the caller's.

    Attributes:
        backends: ExecuTorch's names of the backends the programs call, as ``"XnnpackBackend"``.
        modules: Python modules the child imports before it loads a program, such as
            ``"executorch.kernels.quantized"``.
        env: Environment variables of the child, on top of this process's own.
        threads: Size of the runtime's thread pool; None leaves it to the runtime.
        timeout_s: Longest time in seconds for loading a program and for each request to it.
    """

    backends: tuple[str, ...] = attrs.field(default=(), converter=_names)
    modules: tuple[str, ...] = attrs.field(default=(), converter=_names)
    env: Mapping[str, str] = attrs.field(factory=dict)
    threads: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    timeout_s: float = attrs.field(default=120.0, validator=attrs.validators.gt(0))

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Session]:
        """Start a child process and load a program in it.

        Args:
            buffer: The bytes of a ``.pte``.

        Yields:
            The session. State that the program keeps between runs lasts as long as it does.

        Raises:
            RuntimeUnavailableError: The runtime, a module or a backend is missing.
            RuntimeExecutionError: The bytes are no complete program, or the runtime refuses it.
            RuntimeCrashError: The child died while it loaded the program.
        """
        from qcore_executorch.process import ProgramProcess

        check_pte(buffer, "the program")
        child = ProgramProcess(
            buffer,
            env=self.env,
            modules=self.modules,
            backends=self.backends,
            threads=self.threads,
            timeout_s=self.timeout_s,
        )
        try:
            yield _ExecuTorchSession(child)
        finally:
            child.close()

    def prepare(self) -> None:
        """Get ready for the first session while the caller does something else, as it lowers.

        A process that forks the others imports torch, which takes longer than most programs do.
        """
        from qcore_executorch.process import ProgramProcess

        ProgramProcess.prepare(self.env)

    def needs(self) -> dict[str, Any]:
        """Return what a saved program takes along; the environment is the machine's own."""
        return {
            "backends": list(self.backends),
            "modules": list(self.modules),
            "threads": self.threads,
            "timeout_s": self.timeout_s,
        }

    def run(
        self, buffer: bytes, inputs: Sequence[Any], *, method: str = "forward"
    ) -> tuple[Any, ...]:
        """Run a program once in a process of its own.

        Args:
            buffer: The bytes of a ``.pte``.
            inputs: The flat arguments: tensors and plain numbers.
            method: Name of the program's method.

        Returns:
            The flat outputs.

        Raises:
            RuntimeUnavailableError: The runtime, a module or a backend is missing.
            RuntimeExecutionError: The runtime refuses the program or the inputs, or takes too long.
            RuntimeCrashError: The child died.
        """
        return self.run_many(buffer, [inputs], method=method)[0]

    def run_many(
        self, buffer: bytes, samples: Sequence[Sequence[Any]], *, method: str = "forward"
    ) -> list[tuple[Any, ...]]:
        """Run a program on many inputs in one process.

        Args:
            buffer: The bytes of a ``.pte``.
            samples: The flat arguments of each run.
            method: Name of the program's method.

        Returns:
            The flat outputs of each run, in order.

        Raises:
            RuntimeUnavailableError: The runtime, a module or a backend is missing.
            RuntimeExecutionError: The runtime refuses the program or the inputs, or takes too long.
            RuntimeCrashError: The child died.
        """
        with self.session(buffer) as session:
            return [session.run(inputs, method=method) for inputs in samples]


def _runtime_layout(value: Any) -> Any:
    """Return a tensor in the one memory layout that the runtime takes; other values as they are.

    It crashes on channels_last input, and a view would be written to disk with all of its storage.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    tensor: torch.Tensor = value.detach().cpu().resolve_conj().resolve_neg()
    strides, step = [], 1
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= max(size, 1)
    dense = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    # is_contiguous() ignores the stride of a dimension of size one; the runtime does not.
    if dense and tensor.stride() == tuple(reversed(strides)) and type(tensor) is torch.Tensor:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
