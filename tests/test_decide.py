"""What would become of a node can be asked without annotating anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import qcore
from qcore.annotation import GemmRule, OperatorPattern, SupportTable, annotate_graph, decide
from qcore.plan import QuantizationPlan, RuleKind, Selectors
from qcore.quantizer import Quantizer
from qcore.schemes import get_symmetric_quantization_config

LINEAR = (torch.ops.aten.linear.default,)
TABLE = SupportTable((OperatorPattern("linear", LINEAR, GemmRule()),))

Capture = Callable[..., GraphModule]


def plan() -> QuantizationPlan:
    selectors = Selectors()
    selectors.add(RuleKind.GLOBAL, "", get_symmetric_quantization_config())
    return QuantizationPlan(selectors)


def metadata(graph: GraphModule) -> list[dict[str, Any]]:
    return [dict(node.meta) for node in graph.graph.nodes]


def test_it_says_what_annotating_would_and_writes_nothing(capture: Capture) -> None:
    graph = capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Tanh()), torch.rand(2, 8))
    before = metadata(graph)
    decided = decide(graph, plan(), TABLE, "toy")
    assert metadata(graph) == before
    assert tuple(decided.values()) == annotate_graph(graph, plan(), TABLE, "toy").decisions


def test_annotations_that_are_there_are_kept(capture: Capture) -> None:
    graph = capture(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.rand(2, 8))
    annotate_graph(graph, plan(), TABLE, "toy")
    before = metadata(graph)
    decide(graph, QuantizationPlan(Selectors()), TABLE, "toy")
    assert metadata(graph) == before


def test_explain_says_what_quantizing_decides_and_changes_nothing(
    toy: Callable[[], Quantizer],
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())
    x = torch.rand(2, 4)
    said = qcore.explain(model, toy().set_global("8a8w"), x)
    assert said.decisions == qcore.quantize(model, toy().set_global("8a8w"), [x]).report.decisions
    assert (said.quantized_count, said.float_count) == (1, 1)
