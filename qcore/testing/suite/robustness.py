"""Checks on bad input, on cost, and on giving the same answer twice."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

import qcore
from qcore.testing.models import ZOO, chain
from qcore.testing.subject import Subject, fresh_graph
from qcore.testing.suite.qspecs import annotation_snapshot

__all__ = ["RobustnessChecks"]

_SHORT, _LONG = 24, 96
# Twice what cost in proportion would give: constant costs and noise hide in it, squares do not.
_MOST_CALLS = 1.5 * _LONG / _SHORT
_MOST_SECONDS = 2.5 * _LONG / _SHORT


class RobustnessChecks:
    """Bad input is an error with a next step; cost grows with the graph and no faster."""

    def test_a_rule_that_matches_nothing_is_an_error(self, subject: Subject) -> None:
        three = ZOO["three_linears"]
        quantizer = subject.quantizer().set_module_name("bb", subject.main_scheme)
        subject.expect_refusal(
            "a module name that does not exist",
            lambda: qcore.quantize(fresh_graph(three), quantizer, three.samples),
            "'bb'",
        )

    def test_a_sample_that_is_not_finite_is_an_error(self, subject: Subject) -> None:
        linear = ZOO["linear"]
        bad = torch.full_like(linear.samples[0][0], float("nan"))
        subject.expect_refusal(
            "a calibration sample with NaN",
            lambda: qcore.quantize(
                fresh_graph(linear), subject.selected(subject.main_scheme), [bad]
            ),
            "NaN",
        )

    def test_a_model_quantized_before_is_an_error(self, subject: Subject) -> None:
        scheme = subject.main_scheme
        zoo = subject.probe(scheme) or ZOO["linear"]
        converted = subject.quantize(zoo, scheme).model
        subject.expect_refusal(
            "quantizing a quantized model",
            lambda: qcore.quantize(converted, subject.selected(scheme), zoo.samples),
            "quantized already",
        )

    def test_annotation_is_the_same_every_time(self, subject: Subject) -> None:
        scheme = subject.main_scheme
        for model in ("attention", "residual_add"):
            first, second = (
                subject.annotate(fresh_graph(ZOO[model]), subject.selected(scheme), model)
                for _ in range(2)
            )
            assert annotation_snapshot(first.graph) == annotation_snapshot(second.graph), (
                f"{subject.name}: annotating {model} twice from the start gives different qspecs. "
                "Walk the graph in its own order, never in that of a set."
            )
            assert first.report == second.report, (
                f"{subject.name}: annotating {model} twice from the start gives different reports"
            )

    def test_cost_is_linear_in_the_number_of_nodes(self, subject: Subject) -> None:
        short, long = chain(_SHORT), chain(_LONG)
        calls = _calls(subject, long) / _calls(subject, short)
        assert calls < _MOST_CALLS, (
            f"{subject.name}: {_LONG // _SHORT} times the nodes take {calls:.1f} times the "
            "function calls in transform_for_annotation and annotate. Go over the graph once; look "
            "nothing up by walking it."
        )
        seconds = _seconds(subject, long) / _seconds(subject, short)
        assert seconds < _MOST_SECONDS, (
            f"{subject.name}: {_LONG // _SHORT} times the nodes take {seconds:.1f} times the time "
            "in transform_for_annotation and annotate. Go over the graph once; look nothing up by "
            "walking it."
        )


def _seconds(subject: Subject, model: Any) -> float:
    times = []
    for _ in range(3):
        graph, quantizer = _ready(subject, model)
        start = time.thread_time()
        subject.annotate(graph, quantizer, model.name)
        times.append(time.thread_time() - start)
    return min(times)


def _calls(subject: Subject, model: Any) -> int:
    graph, quantizer = _ready(subject, model)
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        subject.annotate(graph, quantizer, model.name)
    finally:
        sys.setprofile(before)
    return count


def _ready(subject: Subject, model: Any) -> tuple[Any, Any]:
    scheme = subject.main_scheme
    pristine = subject.cached(("chain", model.name), lambda: fresh_graph(model))
    return qcore.graph.clone(pristine), subject.selected(scheme)
