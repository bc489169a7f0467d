"""A lowered program: the artifact a device runs, and a way to run it here."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from qcore.errors import LoweringError, RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering.artifact import artifact_of, read_artifact
from qcore.lowering.runner import Latency, Runner, Session
from qcore.lowering.specs import TensorSpec, check_values, describe_specs
from qcore.report import LoweringReport

__all__ = ["LoweredProgram", "run_program"]


@attrs.frozen(eq=False)
class LoweredProgram:
    """A model compiled for a backend.

    Attributes:
        buffer: The bytes of the artifact, in whatever format the backend's compiler writes.
        backend: Name of the backend it was lowered for.
        report: What was delegated and what was not.
        runner: Executes it on this machine; None where no host can.
        inputs: What it takes, flattened; None for a program read from a file, which records the
            largest shapes only and leaves the checking to the runtime.
        outputs: What it returns, flattened; None for a program read from a file.
        structure: The ``TreeSpec`` of the model's output; None returns outputs flat.
        suffix: The suffix that files of this format have, with the dot; empty where none is usual.
    """

    buffer: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    backend: str
    report: LoweringReport = attrs.field(repr=False)
    runner: Runner | None = attrs.field(default=None, repr=False)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    structure: Any = attrs.field(default=None, repr=False)
    suffix: str = ""

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
        """Read a program that was saved before.

        Args:
            path: The file, of a format that an installed distribution reads.
            backend: Name of the backend it was lowered for, for reports and messages.
            runner: Executes it; None takes what runs programs of its format.

        Returns:
            The program. Its report knows no more than its size.

        Raises:
            RuntimeExecutionError: There is no such file, it is no program, or it is truncated.
            RuntimeUnavailableError: No installed distribution reads programs.
        """
        buffer = read_artifact(path)
        artifact = artifact_of(buffer, os.fspath(path))
        return cls(
            buffer=buffer,
            backend=backend,
            report=LoweringReport(backend=backend, program_bytes=len(buffer), complete=False),
            runner=artifact.runner(buffer) if runner is None else runner,
            suffix=artifact.suffix,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the program to a file, whole or not at all.

        Args:
            path: The file, by custom with the program's ``suffix``; replaced where it exists.

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
                f"Pass a file name, such as {target / f'model{self.suffix}'}."
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
        program: The path of a file written by ``LoweredProgram.save``, or its bytes.
        inputs: The flat arguments: tensors and plain numbers.
        runner: Executes it; None takes what runs programs of its format.
        method: Name of the program's method.

    Returns:
        The flat outputs.

    Raises:
        RuntimeUnavailableError: This machine cannot run the program.
        RuntimeExecutionError: It is no complete program, or the runtime refuses or takes too long.
        RuntimeCrashError: The runtime's process died.
    """
    if isinstance(program, bytes):
        buffer, source = program, "the buffer"
    else:
        buffer, source = read_artifact(program), os.fspath(program)
    artifact = artifact_of(buffer, source)
    chosen = artifact.runner(buffer) if runner is None else runner
    if chosen is None:
        raise RuntimeUnavailableError(
            f"No runtime on this machine executes {source}. Run it on the device."
        )
    with chosen.session(buffer) as session:
        return session.run(list(inputs), method=method)


def _write_atomically(target: Path, data: bytes) -> None:
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(data)
        if target.exists():
            shutil.copymode(target, fresh)
        os.replace(fresh, target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
