"""What must hold of random models on a backend, as tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from qcore.testing.fuzz.outcome import Kind, recipe_of
from qcore.testing.fuzz.workers import Worker

__all__ = ["RandomModels"]


class RandomModels:
    """Tests of a few random models, all the way; subclass it and name the backend.

    ``python -m qcore.testing.fuzz`` takes as many as there is time for.

    Attributes:
        backend: Name of the installed backend.
        flow: ``"pt2e"`` or ``"quantize_"``.
        seeds: Those of the models.
    """

    backend: ClassVar[str]
    flow: ClassVar[str] = "pt2e"
    seeds: ClassVar[Sequence[int]] = range(30)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Ask about each seed by itself."""
        if "seed" in metafunc.fixturenames:
            metafunc.parametrize("seed", self.seeds)

    @pytest.fixture(scope="class")
    def worker(self) -> Iterator[Worker]:
        """Give a process that takes models all the way, and may die of one."""
        with Worker(self.backend, self.flow) as worker:
            yield worker

    def test_a_random_model_is_right_when_executed_or_refused_with_reasons(
        self, worker: Worker, seed: int
    ) -> None:
        outcome = worker.outcome(recipe_of(self.flow, seed))
        assert outcome.kind in {Kind.RIGHT, Kind.REFUSED}, outcome.detail
        assert not outcome.undecided
