"""Models in a process of their own, so that one that dies is a row of the table."""

from __future__ import annotations

import contextlib
import multiprocessing
from types import TracebackType
from typing import Any, Self

from attrs import define, field

from qcore.testing.fuzz.outcome import Kind, Outcome, try_recipe
from qcore.testing.fuzz.recipe import Recipe

__all__ = ["Worker"]


@define
class Worker:
    """A process that takes models all the way, one after the other; a new one where it died.

    Attributes:
        backend: Name of the backend.
        flow: ``"pt2e"`` or ``"quantize_"``.
        timeout_s: Longest time in seconds for one model.
    """

    backend: str
    flow: str
    timeout_s: float = 300.0
    _process: Any = field(default=None, init=False)
    _pipe: Any = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def outcome(self, recipe: Recipe) -> Outcome:
        """Return what becomes of a model."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            arguments = (theirs, self.backend, self.flow)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send(recipe)
            if self._pipe.poll(self.timeout_s):
                outcome: Outcome = self._pipe.recv()
                return outcome
            kind, said = Kind.SLOW, f"no answer within {self.timeout_s:g} s"
        except (EOFError, OSError):
            self._process.join()
            kind, said = Kind.CRASH, f"exit code {self._process.exitcode}"
        self._stop()
        return Outcome(recipe.seed, kind, said)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, backend: str, flow: str) -> None:
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(try_recipe(pipe.recv(), backend, flow))
