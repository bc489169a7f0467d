"""In-place operators become functional, where nothing else would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule

from qcore.annotation.in_place import WRITES_INTO, functional_twin, make_functional
from qcore.graph import ORIGINAL_NAME, ORIGINAL_TARGET
from qcore.quantizer import Quantizer

aten = torch.ops.aten
X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """A function of the input and of a buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.kept = nn.Buffer(torch.zeros(2, 4, 6))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def captured(function: Callable[..., Any]) -> GraphModule:
    return torch.export.export(Of(function), (X.clone(),)).module(check_guards=False)


def left_in_place(graph: GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if functional_twin(n.target) is not None]


def read_before_and_after(m: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    before = y + 1
    y.relu_()
    return before, y - 1, y


def chained(m: nn.Module, x: torch.Tensor) -> Any:
    y = (x * 2).add_(1).clamp_(-1, 1)
    y.mul_(3).sub_(x)
    return y.exp_().abs_()


def through_a_view_that_alone_is_read(m: nn.Module, x: torch.Tensor) -> Any:
    return (x * 2).view(8, 6).relu_() + 1


def of_a_dropout_that_does_nothing(m: nn.Module, x: torch.Tensor) -> Any:
    return nn.functional.dropout(x * 2, training=False).neg_()


FUNCTIONAL = [
    read_before_and_after,
    chained,
    through_a_view_that_alone_is_read,
    of_a_dropout_that_does_nothing,
    lambda m, x: nn.functional.hardswish((x * 3), inplace=True),
    lambda m, x: nn.functional.hardsigmoid((x * 3), inplace=True),
    lambda m, x: nn.functional.elu((x * 3), 0.5, inplace=True),
    lambda m, x: (x + 1).squeeze_(0).unsqueeze_(0) * 2,
    lambda m, x: torch.empty_like(x).copy_(x[:, :1]) + 1,
    lambda m, x: (x + 1).masked_fill_(x > 0, 0.5),
]


@pytest.mark.parametrize("function", FUNCTIONAL)
def test_it_computes_the_same_without_writing(function: Callable[..., Any]) -> None:
    graph = captured(function)
    expected = graph(X.clone())
    assert make_functional(graph) > 0
    assert left_in_place(graph) == []
    torch.testing.assert_close(graph(X.clone()), expected, rtol=0, atol=0)


def writes_a_view(m: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    y[:, 0].relu_()
    return y


def writes_what_a_view_shows(m: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    first = y[:, 0]
    y.relu_()
    return first + 1


def writes_what_an_idle_dropout_returns(m: nn.Module, x: torch.Tensor) -> Any:
    y = x * 2
    nn.functional.dropout(y, training=False).relu_()
    return y


LEFT = [
    (writes_a_view, "mul"),
    (writes_what_a_view_shows, "select"),
    (writes_what_an_idle_dropout_returns, "mul"),
    (lambda m, x: m.kept.add_(x) * 2, "kept"),
]


@pytest.mark.parametrize(("function", "owner"), LEFT)
def test_a_write_that_something_else_reads_is_left_and_named(
    function: Callable[..., Any], owner: str
) -> None:
    graph = captured(function)
    expected = captured(function)(X.clone())
    make_functional(graph)
    assert len(left_in_place(graph)) == 1
    assert [n.meta[WRITES_INTO] for n in graph.graph.nodes if WRITES_INTO in n.meta] == [owner]
    torch.testing.assert_close(graph(X.clone()), expected, rtol=0, atol=0)


def test_a_write_into_an_input_is_left() -> None:
    graph = captured(lambda m, x: x.relu_() + 1)
    assert make_functional(graph) == 0
    x = X.clone()
    graph(x)
    assert torch.equal(x, X.relu())


def test_a_write_into_a_narrower_type_is_left() -> None:
    graph = captured(lambda m, x: (x * 2).half().add_(x.double()))
    assert make_functional(graph) == 0


def test_names_and_operators_are_remembered() -> None:
    graph = captured(lambda m, x: nn.functional.relu(x * 2, inplace=True))
    make_functional(graph)
    (node,) = [n for n in graph.graph.nodes if n.target is aten.relu.default]
    assert (node.name, node.meta[ORIGINAL_NAME]) == ("relu_", "relu_")
    assert node.meta[ORIGINAL_TARGET] is aten.relu_.default


def test_rules_go_by_the_operator_that_the_model_has(toy: Callable[[], Quantizer]) -> None:
    graph = captured(lambda m, x: (x + 1).add_(x) * 2)
    q = toy().set_global("8a8w").set_operator_type(aten.add_.Tensor, None)
    q.annotate(q.transform_for_annotation(graph))
    assert q.report is not None
    assert [d.node for d in q.report.in_float] == ["add_"]


def test_a_write_that_was_left_stays_in_float_and_says_why(toy: Callable[[], Quantizer]) -> None:
    graph = captured(lambda m, x: m.kept.add_(x) * (x + 1))
    q = toy().set_global("8a8w")
    q.annotate(q.transform_for_annotation(graph))
    assert q.report is not None
    (decision,) = q.report.in_float
    assert "writes into kept" in decision.reason
    assert "without the underscore" in decision.advice


STEPS: dict[str, Callable[[list[torch.Tensor], int, int], Any]] = {
    "new": lambda v, i, j: v.append(v[i] * 0.5),
    "joined": lambda v, i, j: v.append(v[i] + v[j]),
    "row": lambda v, i, j: v.append(v[i][:, 1:2].expand(2, 4, 6).contiguous()),
    "view": lambda v, i, j: v.append(v[i].view(2, 4, 6)),
    "part": lambda v, i, j: v[i][:, 1].add_(1),
    "turned": lambda v, i, j: v.append(v[i].transpose(1, 2).transpose(1, 2)),
    "dropped": lambda v, i, j: v.append(nn.functional.dropout(v[i], training=False)),
    "relu_": lambda v, i, j: v[i].relu_(),
    "add_": lambda v, i, j: v[i].add_(v[j]),
    "mul_": lambda v, i, j: v.append(v[i].mul_(2)),
    "copy_": lambda v, i, j: v[i].copy_(v[j]),
}


PICKED = st.integers(0, 20)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), PICKED, PICKED), max_size=8))
def test_any_mixture_of_views_and_writes_computes_the_same(steps: list[Any]) -> None:
    def function(m: nn.Module, x: torch.Tensor) -> Any:
        values = [x, x * 3, x - 1]
        for name, i, j in steps:
            STEPS[name](values, i % len(values), j % len(values))
        return tuple(value + 0 for value in values)

    graph = captured(function)
    expected_input, given_input = X.clone(), X.clone()
    expected = graph(expected_input)
    make_functional(graph)
    torch.testing.assert_close(graph(given_input), expected, rtol=0, atol=0)
    assert torch.equal(given_input, expected_input)
