"""Every compute node of a model as captured has a decision, whatever became of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

import qcore
from qcore.graph import is_compute_node
from qcore.report import AnnotationReport

IMAGE = torch.rand(1, 4, 8, 8)


class Network(nn.Module):
    """A convolution whose batch norm is folded, halves, and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.weight, self.gain = nn.Parameter(torch.rand(4, 2)), nn.Parameter(torch.rand(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (1, 6, 6, 4) of (1, 4, 8, 8)."""
        left, right = self.norm(self.conv(x)).relu().chunk(2, 1)
        return nn.functional.linear((left + right).permute(0, 2, 3, 1), self.weight * self.gain)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take one of two branches."""
        return torch.cond(x.sum() > 0, self.halves, lambda x: self.halves(-x), (x,))

    def halves(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (1, 2, 8, 8) of (1, 4, 8, 8)."""
        left, right = self.layer(x).chunk(2, 1)
        return left + right


def of() -> qcore.Quantizer:
    return qcore.get_quantizer("xnnpack").set_global("8a8w")


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(Network().eval(), (IMAGE,))


def graph() -> torch.fx.GraphModule:
    return exported().module(check_guards=False)  # type: ignore[no-any-return]


def in_one_call(model: Any) -> AnnotationReport:
    return qcore.quantize(model, of(), [IMAGE]).report


def in_torchaos_flow(model: torch.fx.GraphModule) -> AnnotationReport:
    quantizer = of()
    prepare_pt2e(model, quantizer)
    assert quantizer.report is not None
    return quantizer.report


@functools.cache
def report_of(path: str) -> AnnotationReport:
    return PATHS[path]()


PATHS: dict[str, Callable[[], AnnotationReport]] = {
    "module": lambda: in_one_call(Network().eval()),
    "program": lambda: in_one_call(exported()),
    "graph": lambda: in_one_call(graph()),
    "torchao's flow": lambda: in_torchaos_flow(graph()),
    "explained": lambda: qcore.explain(Network().eval(), of(), IMAGE),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_compute_node_as_captured_has_a_decision(path: str) -> None:
    decided = [decision.node for decision in report_of(path).decisions]
    assert len(set(decided)) == len(decided)
    assert {n.name for n in graph().graph.nodes if is_compute_node(n)} <= set(decided)


@pytest.mark.parametrize("path", PATHS)
def test_what_was_folded_or_taken_apart_says_so(path: str) -> None:
    report = report_of(path)
    assert report["batch_norm"].pattern == "folded into conv2d"
    assert report["batch_norm"].operator == "aten.batch_norm.default"
    assert report["batch_norm"].scheme == report["conv2d"].scheme
    assert "taken apart into slice" in report["chunk"].pattern + report["chunk"].reason


def test_decisions_are_in_the_order_of_the_captured_model() -> None:
    wanted = [n.name for n in graph().graph.nodes if is_compute_node(n)]
    decided = [d.node for d in report_of("graph").decisions if d.node in wanted]
    assert decided == wanted


def test_what_was_folded_into_a_layer_in_float_gives_the_reason_of_the_layer() -> None:
    report = qcore.explain(Network().eval(), of().set_node_name("conv2d", None), IMAGE)
    said = "folded into conv2d, and set_node_name('conv2d', None) leaves it in float"
    assert report["batch_norm"].reason == said


def test_bodies_of_conditionals_are_accounted_for_alike() -> None:
    program = torch.export.export(Branches().eval(), (IMAGE,), strict=True)
    report = qcore.explain(program, of(), IMAGE)
    for body in ("true_graph_0", "false_graph_0"):
        assert report[f"{body}/chunk"].pattern.startswith("taken apart into slice")
