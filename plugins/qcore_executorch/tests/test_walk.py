"""Lowered graphs are executed node by node, bodies and state included."""

from __future__ import annotations

import pytest
import torch

from qcore.quiet import quiet
from qcore_executorch import import_executorch
from qcore_executorch.walk import initial_state, walk


def edge_program(model: torch.nn.Module, *inputs: torch.Tensor):
    exir = import_executorch("executorch.exir")
    with quiet():
        return exir.to_edge(torch.export.export(model, inputs)).exported_program()


def no_delegate(module, values):
    raise AssertionError("there is none")


class Loop(torch.nn.Module):
    def forward(self, x):
        def small(value, total):
            return total.sum() < 100

        def add(value, total):
            return value + 1, total + value

        return torch.while_loop(small, add, (x, torch.zeros(3)))


class Nested(torch.nn.Module):
    def forward(self, x):
        def positive(value):
            return torch.cond(value.max() > 5, torch.sin, torch.cos, (value,))

        return torch.cond(x.sum() > 0, positive, torch.neg, (x,))


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x * self.count


@pytest.mark.parametrize("scale", [-1.0, 1.0, 10.0])
def test_conditionals_inside_conditionals_take_the_path_of_their_input(scale):
    x = torch.tensor([0.25, 0.5, 0.75]) * scale
    program = edge_program(Nested(), x)
    (result,) = walk(program, initial_state(program), [x], no_delegate)
    torch.testing.assert_close(result, Nested()(x))


def test_a_loop_runs_until_its_condition_fails():
    x = torch.tensor([1.0, 2.0, 3.0])
    program = edge_program(Loop(), x)
    results = walk(program, initial_state(program), [x], no_delegate)
    torch.testing.assert_close(results, Loop()(x))


def test_a_buffer_that_the_program_writes_is_kept_for_the_next_run():
    x = torch.ones(3)
    program = edge_program(Counter(), x)
    state = initial_state(program)
    results = [float(walk(program, state, [x], no_delegate)[0][0]) for _ in range(3)]
    assert results == [1.0, 2.0, 3.0]
    assert float(walk(program, initial_state(program), [x], no_delegate)[0][0]) == 1.0
