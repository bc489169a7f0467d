"""Runners: execute a program on a host, away from the caller's process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import attrs

from qcore.errors import RuntimeUnavailableError

__all__ = ["Latency", "NoRunner", "Runner", "Session"]


@attrs.frozen
class Latency:
    """How long a program takes, timed inside the process that runs it.

    Attributes:
        median_ms: Median of the timed runs in milliseconds.
        min_ms: The fastest run in milliseconds.
        max_ms: The slowest run in milliseconds.
        runs: How many runs were timed.
        emulation: What stood for a device, whose times are others; empty where nothing did.
    """

    median_ms: float
    min_ms: float
    max_ms: float
    runs: int
    emulation: str = ""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Summarize timed runs.

        Args:
            seconds: The time of each run in seconds, at least one.

        Returns:
            Their summary.
        """
        times = [1e3 * value for value in seconds]
        return cls(statistics.median(times), min(times), max(times), len(times))

    def __str__(self) -> str:
        text = f"{self.median_ms:.3g} ms ({self.min_ms:.3g} to {self.max_ms:.3g}, {self.runs} runs)"
        if not self.emulation:
            return text
        return f"{text}, and a device's time is another: this was {self.emulation}"


class Session(Protocol):
    """A program loaded once, ready to run many inputs."""

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        """Run the program once.

        Args:
            inputs: The flat arguments: tensors and plain numbers.
            method: Name of the program's method.

        Returns:
            The flat outputs.
        """
        ...

    def benchmark(
        self, inputs: Sequence[Any], *, warmup: int, runs: int, method: str = "forward"
    ) -> Latency:
        """Time the program.

        Args:
            inputs: The flat arguments: tensors and plain numbers.
            warmup: Runs before the timed ones.
            runs: Timed runs.
            method: Name of the program's method.

        Returns:
            The time of one run.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """What a backend provides to execute its programs on a host.

    This one method is all that it has to have. One that programs need options of has ``needs()``,
    too, which returns them as plain data; :meth:`qcore.LoweredProgram.save` writes them, and the
    backend's ``loaded`` makes a runner of them again.
    """

    def session(self, buffer: bytes) -> AbstractContextManager[Session]:
        """Load a program; leaving the context frees whatever that took.

        Args:
            buffer: The program's bytes.

        Returns:
            A context manager that gives the session.
        """
        ...


@attrs.frozen
class NoRunner:
    """Runs no program, and says why.

    Attributes:
        reason: Why not, and what to do instead.
    """

    reason: str

    def session(self, buffer: bytes) -> AbstractContextManager[Session]:
        """Raise.

        Args:
            buffer: The program's bytes.

        Raises:
            RuntimeUnavailableError: Always.
        """
        del buffer
        raise RuntimeUnavailableError(self.reason)
