"""Random models: the same from the same seed, run, made smaller, and judged."""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve

import qcore
from qcore import LoweredProgram, registry
from qcore.report import LoweringReport
from qcore.testing.fuzz import Kind, Recipe, Step, linear_recipe, random_recipe, shrunk, try_recipe
from qcore.testing.fuzz.__main__ import main
from qcore.testing.fuzz.workers import Worker


@pytest.mark.parametrize("draw", [random_recipe, linear_recipe])
def test_a_seed_always_gives_the_same_model(draw):
    assert [draw(seed).code for seed in range(5)] == [draw(seed).code for seed in range(5)]
    assert draw(0).code != draw(1).code


# What each kind of model has in some of the seeds.
_EVERYWHERE = ("Dim(", "None", "'a': ", "samples = [{", ".half()", ".double()", ".weight = self.")
_VARIED = {
    random_recipe: ("nn.Conv2d", "nn.Linear", "channels_last", "F.", "randint", "(8)", "x > 3"),
    linear_recipe: ("nn.Embedding", "self.shared(", "nn.LayerNorm", "Linear(1, ", "randn(33)"),
}


@pytest.mark.parametrize("draw", _VARIED)
def test_models_vary_in_their_inputs_outputs_types_and_operators(draw):
    code = "\n".join(draw(seed).code for seed in range(150))
    assert [part for part in (*_EVERYWHERE, *_VARIED[draw]) if part not in code] == []


@pytest.mark.parametrize("draw", _VARIED)
def test_models_run(draw):
    for seed in range(12):
        scope = draw(seed).build()
        sample = scope["samples"][0]
        scope["model"](**sample) if isinstance(sample, dict) else scope["model"](*sample)


ABS = Step("v0", "{0}.abs()", ("x",))
SUM = Step("v1", "{0}.sum(-1)", ("v0",))
LAST = Step("v2", "{0} + 1", ("v1",))
RECIPE = Recipe(0, {"x": "torch.randn(2, 3)"}, (ABS, SUM, LAST), ("v2", "v0"), "({0}, {1})")


def test_a_failure_is_shrunk_to_the_operator_that_shows_it():
    small = shrunk(RECIPE, lambda recipe: ".sum(" in recipe.code)
    assert [step.statement for step in small.steps] == ["v1 = x.sum(-1)"]
    assert small.output == "{0}"
    assert "return v1" in small.code


def test_a_model_that_does_not_run_in_float_says_nothing_about_a_backend():
    broken = evolve(RECIPE, steps=(Step("v0", "{0} @ {0}", ("x",)),), outputs=("v0",), output="{0}")
    assert try_recipe(broken, "none", "pt2e").kind is Kind.INVALID


class _Program(LoweredProgram):
    def run(self, x: torch.Tensor, *, fast: bool = False) -> Any:
        assert fast
        return x.abs().sum(-1) + 1, x.abs()


def test_a_backend_is_built_and_run_with_the_options_that_it_states_for_its_tests(toy_backend):
    class Targeted(toy_backend):
        conformance: ClassVar = {"options": {"target": "small"}, "run_options": {"fast": True}}

        def __init__(self, target: str) -> None:
            super().__init__(target)

        @qcore.hookimpl
        def lower(self, program: Any, options: Any) -> Any:
            return _Program(b"", "targeted", LoweringReport("targeted"))

    qcore.register_backend("targeted", Targeted)
    outcome = try_recipe(RECIPE, "targeted", "pt2e")
    registry.unregister_backend("targeted")
    assert outcome.kind is Kind.RIGHT


class _Deadly:
    seed = 3

    def __reduce__(self):
        return os._exit, (7,)


def test_a_model_that_kills_its_process_is_a_row():
    with Worker("none", "pt2e") as worker:
        outcome = worker.outcome(_Deadly())
        assert (outcome.kind, outcome.detail) == (Kind.CRASH, "exit code 7")
        again = worker.outcome(evolve(RECIPE, output="{0} @ 1"))
        assert again.kind is Kind.INVALID


class _Endless:
    seed = 4

    def __reduce__(self):
        return time.sleep, (600,)


def test_a_model_that_takes_too_long_is_no_crash():
    with Worker("none", "pt2e", timeout_s=0.1) as worker:
        outcome = worker.outcome(_Endless())
    assert (outcome.kind, outcome.detail) == (Kind.SLOW, "no answer within 0.1 s")


def test_the_command_needs_a_backend(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--backend" in capsys.readouterr().err
