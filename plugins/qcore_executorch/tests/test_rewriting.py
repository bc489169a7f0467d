"""An exported model is rewritten as it is, not exported again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from qcore.graph import operator_name
from qcore.lowering import export_for_lowering
from qcore_executorch import rewritten

aten = torch.ops.aten
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """A linear layer and a conditional."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
        return self.linear(x), y


def scaled(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (x @ torch.diag(factors)).sigmoid()


def scale(model, node, tensors):
    """Put two functions in the place of a layer, one of its weight and one of a new constant."""
    weight = tensors[node.args[1].name]
    model.register_buffer("factors", torch.diagonal(weight).clone())
    with model.graph.inserting_before(node):
        factors = model.graph.get_attr("factors")
        result = model.graph.call_function(scaled, (node.args[0], factors))
        result = model.graph.call_function(aten.neg.default, (result,))
    node.replace_all_uses_with(result)


@pytest.fixture(scope="module")
def model() -> Branching:
    return Branching().eval()


@pytest.fixture
def program(model: Branching) -> ExportedProgram:
    return export_for_lowering(torch.export.export(model, (X,)).module(), (X,))


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    made: list[object] = []
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: made.append(args))
    return made


def linear(node):
    return node.target is aten.linear.default


def test_it_is_not_exported_again_and_computes_what_was_put_in(
    program: ExportedProgram, model: Branching, exports: list[object]
) -> None:
    changed = rewritten(program, linear, scale)
    assert not exports
    got, branch = changed.module(check_guards=False)(X)
    assert torch.equal(got, -scaled(X, torch.diagonal(model.linear.weight)))
    assert torch.equal(branch, model(X)[1])


def test_every_operator_is_of_aten_and_has_a_value(program: ExportedProgram) -> None:
    graph = rewritten(program, linear, scale).graph
    calls = [n for n in graph.nodes if n.op == "call_function"]
    assert "aten.matmul.default" in map(operator_name, calls)
    assert all("val" in node.meta for node in calls)
    assert not graph.find_nodes(op="call_function", target=scaled)


def test_the_program_holds_new_constants_and_no_longer_what_nothing_reads(
    program: ExportedProgram,
) -> None:
    changed = rewritten(program, linear, scale)
    assert set(changed.state_dict) == {"factors"}
    assert set(program.state_dict) == {"linear.weight", "linear.bias"}


def test_a_program_without_such_nodes_stays_as_it_is(program: ExportedProgram) -> None:
    assert rewritten(program, lambda node: False, scale) is program
