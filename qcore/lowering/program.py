"""A lowered program: the artifact a device runs, and a way to run it here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from qcore.errors import LoweringError, RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering.pte import check_pte
from qcore.lowering.report import LoweringReport
from qcore.lowering.runner import ExecuTorchRunner, Latency, Runner, Session
from qcore.lowering.specs import TensorSpec, check_values, describe_specs

__all__ = ["LoweredProgram", "run_program"]


@attrs.frozen(eq=False)
class LoweredProgram:
    """A model compiled for a backend.

    Attributes:
        buffer: The bytes of the ``.pte``.
        backend: Name of the backend it was lowered for.
        report: What was delegated and what was not.
        runner: Executes it on this machine; None where no host can.
        inputs: What it takes, flattened; None for a program read from a file, which records the
            largest shapes only and leaves the checking to the runtime.
        outputs: What it returns, flattened; None for a program read from a file.
        structure: The ``TreeSpec`` of the model's output; None returns outputs flat.
    """

    buffer: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    backend: str
    report: LoweringReport = attrs.field(repr=False)
    runner: Runner | None = attrs.field(default=None, repr=False)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    structure: Any = attrs.field(default=None, repr=False)

    @property
    def delegated(self) -> tuple[str, ...]:
        """Names of the compute nodes that the backend's delegates took."""
        return tuple(node.name for node in self.report.delegated)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "unknown",
        runner: Runner | None = None,
    ) -> LoweredProgram:
        """Read a program from a ``.pte`` file.

        Args:
            path: The file.
            backend: Name of the backend it was lowered for, for reports and messages.
            runner: Executes it; None takes ExecuTorch's own runtime.

        Returns:
            The program. Its report knows no more than its size.

        Raises:
            RuntimeExecutionError: There is no such file, it is no program, or it is truncated.
        """
        buffer = _read(path)
        report = LoweringReport(backend=backend, pte_bytes=len(buffer), complete=False)
        return cls(
            buffer=buffer,
            backend=backend,
            report=report,
            runner=ExecuTorchRunner() if runner is None else runner,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the program to a file, whole or not at all.

        Args:
            path: The file, by custom with the suffix ``.pte``; replaced where it exists.

        Returns:
            The path.

        Raises:
            LoweringError: The folder does not exist, or the file cannot be written.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise LoweringError(
                f"Cannot save the program to {target}: the folder {target.parent} does not exist. "
                "Create it first, or choose another path."
            )
        if target.is_dir():
            raise LoweringError(
                f"Cannot save the program to {target}: it is a folder. "
                f"Pass a file name, such as {target / 'model.pte'}."
            )
        try:
            _write_atomically(target, self.buffer)
        except OSError as error:
            raise LoweringError(
                f"Cannot save the program to {target}: {error.strerror or error}. "
                "Choose a path you can write to."
            ) from error
        return target

    def run(self, *inputs: Any, method: str = "forward") -> Any:
        """Execute the program in a process of its own.

        Args:
            *inputs: The model's positional arguments, in any memory layout.
            method: Name of the program's method.

        Returns:
            What the model returns, in its structure.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program.
            RuntimeExecutionError: The inputs do not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        return self.run_many([inputs], method=method)[0]

    def run_many(self, samples: Iterable[Any], *, method: str = "forward") -> list[Any]:
        """Execute the program on many inputs in one process.

        Args:
            samples: The model's positional arguments of each run, as a tuple or list; a lone
                tensor stands for a model with one argument.
            method: Name of the program's method.

        Returns:
            What the model returns for each, in order.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program.
            RuntimeExecutionError: An input does not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        flat = [self._flatten(sample, method) for sample in samples]
        if not flat:
            return []
        with self._session() as session:
            return [self._restore(session.run(leaves, method=method), method) for leaves in flat]

    @contextmanager
    def session(self) -> Iterator[Callable[..., Any]]:
        """Keep one process with the program loaded for as long as the context lasts.

        State that the program itself keeps, such as a cache, lasts as long.

        Yields:
            A function that takes the model's positional arguments and returns what it returns.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program.
            RuntimeExecutionError: The runtime refuses the program.
            RuntimeCrashError: The runtime's process died.
        """
        with self._session() as session:

            def run(*inputs: Any, method: str = "forward") -> Any:
                leaves = self._flatten(inputs, method)
                return self._restore(session.run(leaves, method=method), method)

            yield run

    def benchmark(
        self, *inputs: Any, warmup: int = 3, runs: int = 20, method: str = "forward"
    ) -> Latency:
        """Time the program inside the process that runs it.

        Args:
            *inputs: The model's positional arguments.
            warmup: Runs before the timed ones.
            runs: Timed runs.
            method: Name of the program's method.

        Returns:
            The time of one run; starting the process and loading the program are left out.

        Raises:
            ValueError: ``runs`` is below 1 or ``warmup`` below 0.
            RuntimeUnavailableError: This machine cannot run the program.
            RuntimeExecutionError: The inputs do not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        if runs < 1 or warmup < 0:
            raise ValueError(f"runs must be at least 1 and warmup at least 0, got {runs}, {warmup}")
        leaves = self._flatten(inputs, method)
        with self._session() as session:
            return session.benchmark(leaves, warmup=warmup, runs=runs, method=method)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if self.runner is None:
            raise RuntimeUnavailableError(
                f"No runtime on this machine executes a program for {self.backend!r}: the backend "
                "provides no runner. Save the program and run it on the device."
            )
        with self.runner.session(self.buffer) as session:
            yield session

    def _flatten(self, sample: Any, method: str) -> list[Any]:
        import torch
        from torch.utils._pytree import tree_leaves

        if not isinstance(sample, (tuple, list)):
            sample = (sample,)
        leaves: list[Any] = tree_leaves(tuple(sample))
        if self.inputs is not None and method == "forward":
            check_values(self.inputs, leaves, what="program input", error=RuntimeExecutionError)
        for index, value in enumerate(leaves):
            if not isinstance(value, (torch.Tensor, int, float, bool, type(None))):
                raise RuntimeExecutionError(
                    f"Input {index} is a {type(value).__module__}.{type(value).__name__}; a "
                    "program takes tensors and plain numbers. Convert it with torch.as_tensor()."
                )
        return leaves

    def _restore(self, outputs: tuple[Any, ...], method: str) -> Any:
        from torch.utils._pytree import tree_unflatten

        if self.structure is not None and method == "forward":
            return tree_unflatten(outputs, self.structure)
        return outputs[0] if len(outputs) == 1 else outputs

    def __str__(self) -> str:
        lines = [str(self.report)]
        if self.inputs is not None and self.outputs is not None:
            lines.append(f"  takes {describe_specs(self.inputs)}")
            lines.append(f"  returns {describe_specs(self.outputs)}")
        return "\n".join(lines)


def run_program(
    program: str | os.PathLike[str] | bytes,
    inputs: Sequence[Any],
    *,
    runner: Runner | None = None,
    method: str = "forward",
) -> tuple[Any, ...]:
    """Execute a program that was saved before.

    Args:
        program: The path of a ``.pte`` file, or its bytes.
        inputs: The flat arguments: tensors and plain numbers.
        runner: Executes it; None takes ExecuTorch's own runtime.
        method: Name of the program's method.

    Returns:
        The flat outputs.

    Raises:
        RuntimeUnavailableError: This machine cannot run the program.
        RuntimeExecutionError: It is no complete program, or the runtime refuses or takes too long.
        RuntimeCrashError: The runtime's process died.
    """
    if isinstance(program, bytes):
        check_pte(program)
        buffer = program
    else:
        buffer = _read(program)
    chosen = ExecuTorchRunner() if runner is None else runner
    with chosen.session(buffer) as session:
        return session.run(list(inputs), method=method)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        buffer = Path(path).read_bytes()
    except OSError as error:
        raise RuntimeExecutionError(
            f"Cannot read a program from {os.fspath(path)}: {error.strerror or error}. "
            "Pass the path of a file written by LoweredProgram.save()."
        ) from error
    check_pte(buffer, str(os.fspath(path)))
    return buffer


def _write_atomically(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
