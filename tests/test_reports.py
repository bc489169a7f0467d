"""Reports: where decisions are kept, and what data, JSON, schema and text say of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.quantizer import Quantizer
from qcore.report import read_decisions
from qcore.testing import Fn

Build = Callable[[], Quantizer]
Capture = Callable[..., GraphModule]
ROW = torch.randn(2, 8)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y), (x,))


class TestDecisions:
    def test_they_travel_in_the_model_through_torchaos_own_flow(
        self, toy: Build, capture: Capture
    ) -> None:
        graph = capture(Fn(lambda m, x: m.a(x), a=nn.Linear(8, 8)), ROW)
        quantizer = toy().set_global("8a8w")
        prepared = prepare_pt2e(graph, quantizer)
        prepared(ROW)
        assert read_decisions(convert_pt2e(prepared)) == quantizer.report

    def test_those_of_bodies_are_in_the_model_that_runs_them(self, toy: Build) -> None:
        result = qcore.quantize(Branches(), toy().set_global("8a8w"), [ROW.abs(), -ROW.abs()])
        assert read_decisions(result.model) == result.report
        assert result.report["true_graph_0/linear"].is_quantized

    def test_a_model_is_judged_by_its_own_and_not_by_those_of_the_last_one(
        self, toy: Build, capture: Capture, monkeypatch
    ) -> None:
        quantizer, judged = toy().set_global("8a8w"), []
        monkeypatch.setattr(
            quantizer._hooks,
            "validate_partial",
            lambda model, plan, report: judged.append(report) or (),
        )
        first, second = (
            capture(Fn(function, a=nn.Linear(8, 8)), ROW)
            for function in (lambda m, x: m.a(x), lambda m, x: m.a(x).relu())
        )
        mine = quantizer.annotated(first)
        quantizer.annotated(second)
        quantizer.validate(first)
        assert judged == [mine]

    def test_a_model_that_was_not_annotated_has_none(self, capture: Capture) -> None:
        assert read_decisions(capture(nn.Linear(8, 8), ROW)) is None
