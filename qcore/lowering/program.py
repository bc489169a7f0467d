"""A lowered program: the artifact a device runs, and a way to run it here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs

from qcore import registry
from qcore.errors import (
    QcoreError,
    RuntimeExecutionError,
    RuntimeUnavailableError,
    warn,
)
from qcore.files import write_whole
from qcore.lowering.artifact import artifact_of, read_artifact
from qcore.lowering.runner import Latency, Runner, Session
from qcore.lowering.saved import Saved, footer_of, split_footer, tree_data, tree_of
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
        inputs: What it takes, flattened; None leaves the checking to the runtime, as for a file
            that ``save`` did not write.
        outputs: What it returns, flattened; None where that is not known.
        structure: The ``TreeSpec`` of the model's output; None returns outputs flat.
        suffix: The suffix that files of this format have, with the dot; empty where none is usual.
        call: The ``TreeSpec`` of the model's arguments; None takes positional ones alone. ``lower``
            of the quantizer fills it in.
    """

    buffer: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    backend: str
    report: LoweringReport = attrs.field(repr=False)
    runner: Runner | None = attrs.field(default=None, repr=False)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    structure: Any = attrs.field(default=None, repr=False)
    suffix: str = ""
    call: Any = attrs.field(default=None, repr=False)

    @classmethod
    def of(cls, program: LoweredProgram, **more: Any) -> Self:
        """Make a program of this class from one of another.

        Args:
            program: The program.
            **more: What this class has beside it, and what is to be replaced.

        Returns:
            The program.
        """
        fields = {f.name: getattr(program, f.name) for f in attrs.fields(LoweredProgram)}
        return cls(**{**fields, **more})

    def __reduce__(self) -> Any:
        """Pickle what a file would hold: what a subclass adds stays in this process."""
        fields = {f.name: getattr(self, f.name) for f in attrs.fields(LoweredProgram)}
        fields["structure"] = tree_data(self.structure, "output")
        fields["call"] = tree_data(self.call, "input")
        return _unpickled, (type(self), fields)

    @property
    def delegated(self) -> tuple[str, ...]:
        """Names of the compute nodes that the backend's delegates took."""
        return tuple(node.name for node in self.report.delegated)

    @property
    def emulation(self) -> str:
        """What stands for a device where this machine runs the program; empty where nothing does.

        It is the runner's attribute of that name, if it has one.
        """
        return str(getattr(self.runner, "emulation", ""))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        runner: Runner | None = None,
    ) -> LoweredProgram:
        """Read a program that was saved before.

        Args:
            path: The file, of a format that an installed distribution reads.
            backend: Name of the backend it was lowered for; None takes what ``save`` wrote.
            runner: Executes it; None takes what its backend provides, and without that backend
                what runs programs of its format.

        Returns:
            The program, ready to run. Where ``save`` did not write the file, its report knows no
            more than its size.

        Raises:
            RuntimeExecutionError: There is no such file, it is no program, it is truncated, or
                a later release of qcore wrote it.
            RuntimeUnavailableError: No installed distribution reads programs.
        """
        return _read(read_artifact(path), os.fspath(path), backend, runner)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the program to a file, whole or not at all.

        Behind the last byte of :attr:`buffer` stands what :meth:`load` needs to run it again; who
        reads the artifact alone stops before that. Where each byte counts, write ``buffer``.

        Args:
            path: The file, by custom with the program's ``suffix``; replaced where it exists.

        Returns:
            The path.

        Raises:
            LoweringError: The folder does not exist, or the file cannot be written.
        """
        advice = f"model{self.suffix}"
        return write_whole(path, self.buffer + footer_of(self), "the program", advice)

    def run(self, *inputs: Any, method: str = "forward", **keywords: Any) -> Any:
        """Execute the program in a process of its own.

        Args:
            *inputs: The model's positional arguments, in any memory layout.
            method: Name of the program's method.
            **keywords: Its keyword arguments, where it was captured with some.

        Returns:
            What the model returns, in its structure.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program.
            RuntimeExecutionError: The inputs do not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        leaves = self.flatten(inputs, keywords, method)
        with self._session() as session:
            return self._restore(session.run(leaves, method=method), method)

    def run_many(self, samples: Iterable[Any], *, method: str = "forward") -> list[Any]:
        """Execute the program on many inputs in one process.

        Args:
            samples: The model's arguments of each run: positional ones as a tuple or list, keyword
                ones as a mapping; a lone tensor stands for a model with one argument.
            method: Name of the program's method.

        Returns:
            What the model returns for each, in order.

        Raises:
            QcoreError: As :meth:`run`.
        """
        flat = [self.flatten(*self._arguments(sample), method) for sample in samples]
        if not flat:
            return []
        with self._session() as session:
            return [self._restore(session.run(leaves, method=method), method) for leaves in flat]

    @contextmanager
    def session(self) -> Iterator[Callable[..., Any]]:
        """Keep one process with the program loaded for as long as the context lasts.

        State that the program itself keeps, such as a cache, lasts as long.

        Yields:
            A function that takes the model's arguments and returns what it returns.

        Raises:
            QcoreError: As :meth:`run`.
        """
        with self._session() as session:

            def run(*inputs: Any, method: str = "forward", **keywords: Any) -> Any:
                leaves = self.flatten(inputs, keywords, method)
                return self._restore(session.run(leaves, method=method), method)

            yield run

    def benchmark(
        self,
        *inputs: Any,
        warmup: int = 3,
        runs: int = 20,
        method: str = "forward",
        **keywords: Any,
    ) -> Latency:
        """Time the program inside the process that runs it.

        Args:
            *inputs: The model's positional arguments.
            warmup: Runs before the timed ones.
            runs: Timed runs.
            method: Name of the program's method.
            **keywords: Its keyword arguments, where it was captured with some.

        Returns:
            The time of one run; starting the process and loading the program are left out.

        Raises:
            ValueError: ``runs`` is below 1 or ``warmup`` below 0.
            QcoreError: As :meth:`run`.
        """
        if runs < 1 or warmup < 0:
            raise ValueError(f"runs must be at least 1 and warmup at least 0, got {runs}, {warmup}")
        leaves = self.flatten(inputs, keywords, method)
        with self._session() as session:
            found = session.benchmark(leaves, warmup=warmup, runs=runs, method=method)
        return attrs.evolve(found, emulation=self.emulation)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if self.runner is None:
            raise RuntimeUnavailableError(
                f"No runtime on this machine executes a program for {self.backend!r}: the backend "
                "provides no runner. Save the program and run it on the device."
            )
        with self.runner.session(self.buffer) as session:
            yield session

    def _keywords(self) -> tuple[str, ...]:
        """Return the names of the keyword arguments that the model was captured with."""
        return () if self.call is None else tuple(self.call.children()[1].context or ())

    def _arguments(self, sample: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Read a sample; a mapping is one argument where the model has no keyword arguments."""
        if isinstance(sample, Mapping) and self._keywords():
            return (), sample
        return (sample if isinstance(sample, (tuple, list)) else (sample,)), {}

    def flatten(
        self, inputs: Sequence[Any], keywords: Mapping[str, Any], method: str = "forward"
    ) -> list[Any]:
        """Check arguments and return them as the program takes them.

        Args:
            inputs: The model's positional arguments.
            keywords: Its keyword arguments, where it was captured with some.
            method: Name of the program's method.

        Returns:
            The flat arguments, in the order of the capture.

        Raises:
            RuntimeExecutionError: The inputs do not fit.
        """
        import torch
        from torch.utils._pytree import tree_leaves

        taken = self._keywords()
        if keywords and set(keywords) != set(taken):
            raise RuntimeExecutionError(
                f"The program was given the keyword arguments {', '.join(keywords)}; it was "
                f"captured with {', '.join(taken) or 'none'}. Pass these, all of them, or "
                "every argument by position."
            )
        # In the order of the capture, whatever that of the call.
        ordered = [keywords[name] for name in taken if keywords]
        leaves: list[Any] = tree_leaves((tuple(inputs), ordered))
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
        data, source = program, "the buffer"
    else:
        data, source = read_artifact(program), os.fspath(program)
    read = _read(data, source, None, runner)
    if read.runner is None:
        raise RuntimeUnavailableError(
            f"No runtime on this machine executes {source}. Run it on the device."
        )
    with read.runner.session(read.buffer) as session:
        return session.run(list(inputs), method=method)


def _unpickled(cls: type[LoweredProgram], fields: dict[str, Any]) -> LoweredProgram:
    trees = {"structure": tree_of(fields["structure"], "output")}
    return cls(**{**fields, **trees, "call": tree_of(fields["call"], "input")})


def _read(data: bytes, source: str, backend: str | None, runner: Runner | None) -> LoweredProgram:
    buffer, found = split_footer(data, source)
    artifact = artifact_of(buffer, source)
    saved = found or Saved()
    program = LoweredProgram(
        buffer=buffer,
        backend=backend or saved.backend,
        report=LoweringReport(backend=backend or saved.backend),
        runner=artifact.runner(buffer),
        inputs=saved.inputs,
        outputs=saved.outputs,
        structure=saved.structure,
        suffix=artifact.suffix,
        call=saved.call,
    )
    program = attrs.evolve(program, report=saved.report_as(LoweringReport, program))
    loaded = _backend_loads(program.backend, source) or getattr(artifact, "loaded", None)
    program = program if loaded is None else loaded(program, saved)
    return program if runner is None else attrs.evolve(program, runner=runner)


def _backend_loads(name: str, source: str) -> Any:
    """Return the function by which a backend makes a program ready to run, if it has one."""
    info = registry.backends().get(name)
    try:
        if info is not None:
            return getattr(info.load(), "loaded", None)
        if name == "unknown":
            return None
        why = "That backend is not installed here."
    except QcoreError as error:
        why = str(error)
    warn(f"{source} was lowered for {name!r}; what runs its format will try it alone. {why}")
    return None
