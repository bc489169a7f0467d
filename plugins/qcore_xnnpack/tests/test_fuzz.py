"""A few random models, all the way; ``make fuzz`` takes as many as there is time for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qcore.testing.fuzz import Kind, linear_recipe, random_recipe
from qcore.testing.fuzz.workers import Worker

# Those that began to stop, fail late or be wrong once, and a few that never did.
SEEDS = (0, 2, 5, 25, 34, 43, 54, 143, 207, 435, 476, 702)
LINEAR_SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=["pt2e", "quantize_"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker("xnnpack", request.param) as worker:
        yield worker


@pytest.mark.parametrize("worker", ["pt2e"], indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_is_right_when_executed_or_refused_with_reasons(
    worker: Worker, seed: int
) -> None:
    outcome = worker.outcome(random_recipe(seed))
    assert outcome.kind in {Kind.RIGHT, Kind.REFUSED}, outcome.detail
    assert not outcome.undecided


@pytest.mark.parametrize("worker", ["quantize_"], indirect=True)
@pytest.mark.parametrize("seed", LINEAR_SEEDS)
def test_a_random_linear_model_is_right_when_executed_or_refused_with_reasons(
    worker: Worker, seed: int
) -> None:
    outcome = worker.outcome(linear_recipe(seed))
    assert outcome.kind in {Kind.RIGHT, Kind.REFUSED}, outcome.detail
