"""Take random models all the way and print a table: ``python -m qcore.testing.fuzz``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from qcore.testing.fuzz.outcome import FLOWS, Kind, Outcome, recipe_of, shrunk
from qcore.testing.fuzz.recipe import Recipe
from qcore.testing.fuzz.workers import Worker

__all__: list[str] = []

_FAILURES = (Kind.STOPPED, Kind.LATE, Kind.CRASH, Kind.SLOW, Kind.WRONG, Kind.BARE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line; None takes the process's.

    Returns:
        The exit status: 1 where a model is wrong, dies, fails late, takes too long or raises no
        QcoreError.
    """
    parser = argparse.ArgumentParser(prog="python -m qcore.testing.fuzz", description=__doc__)
    parser.add_argument("--backend", required=True, help="the backend, as qcore.backends() has it")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="pt2e")
    parser.add_argument("--seeds", type=_seeds, default=range(100), help="FIRST:END (0:100)")
    parser.add_argument("--shrink", action="store_true", help="print each failure as small code")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one model")
    given = parser.parse_args(arguments)
    outcomes = []
    with Worker(given.backend, given.flow, given.timeout) as worker:
        for seed in tqdm(given.seeds, disable=None, leave=False):
            recipe = recipe_of(given.flow, seed)
            outcome = worker.outcome(recipe)
            outcomes.append(outcome)
            _print(outcome)
            if given.shrink and outcome.kind in _FAILURES:
                print(_smallest(worker, recipe, outcome).code, flush=True)
    print(_table(given.backend, given.flow, outcomes))
    return int(any(o.kind in _FAILURES[1:] for o in outcomes))


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end)) if end else range(int(first), int(first) + 1)


def _print(outcome: Outcome) -> None:
    facts = [outcome.detail] if outcome.detail else []
    facts += [f"no decision: {', '.join(outcome.undecided)}"] if outcome.undecided else []
    facts += [f"mended: {'; '.join(outcome.mended)}"] if outcome.mended else []
    if facts:
        tqdm.write(f"{outcome.seed}: {outcome.kind}: {' | '.join(facts)}")


def _smallest(worker: Worker, recipe: Recipe, outcome: Outcome) -> Recipe:
    return shrunk(recipe, lambda smaller: worker.outcome(smaller).kind is outcome.kind)


def _table(backend: str, flow: str, outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.kind for outcome in outcomes)
    valid = len(outcomes) - counts[Kind.INVALID]
    refused = counts[Kind.REFUSED]
    rows = [f"{backend}, {flow}: {valid} models, {valid - refused} accepted"]
    rows += [f"{counts[kind]:6d}  {kind}" for kind in Kind if kind is not Kind.INVALID]
    rows.append(f"{sum(bool(o.undecided) for o in outcomes):6d}  with nodes without a decision")
    rows.append(f"{sum(bool(o.mended) for o in outcomes):6d}  mended when lowered")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
