"""Checks on what a backend writes into a graph, and on what it says that it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qcore.errors import PartialQuantizationError
from qcore.graph import ORIGINAL_TARGET, is_compute_node, module_path
from qcore.quantizer import Quantizer
from qcore.schemes import QuantizationScheme
from qcore.testing.models import ZOO, ZooModel
from qcore.testing.subject import Annotated, Subject, fresh_graph
from qcore.testing.suite.qspecs import annotation_snapshot, check_qspecs, says_something

__all__ = ["AnnotationChecks", "check_every_node", "check_reasons", "check_truth"]

every_model = pytest.mark.parametrize("model", ZOO)
_THREE = ZOO["three_linears"]


def _is_linear(node: Node) -> bool:
    target = node.meta.get(ORIGINAL_TARGET, node.target)
    return target is torch.ops.aten.linear.default


Selection = Callable[[Quantizer, QuantizationScheme], Quantizer]

# How three linear layers a, b, c are selected, and which of them that quantizes.
_SELECTIONS: dict[str, tuple[Selection, str]] = {
    "module name": (lambda q, s: q.set_module_name("b", s), "b"),
    "module name to None": (lambda q, s: q.set_global(s).set_module_name("b", None), "ac"),
    "module type": (lambda q, s: q.set_module_type(nn.Linear, s), "abc"),
    "module type to None": (lambda q, s: q.set_global(s).set_module_type(nn.Linear, None), ""),
    "operator type": (lambda q, s: q.set_operator_type(torch.ops.aten.linear.default, s), "abc"),
    "operator type to None": (
        lambda q, s: q.set_global(s).set_operator_type(torch.ops.aten.linear.default, None),
        "",
    ),
    "node name": (lambda q, s: q.set_node_name("linear_1", s), "b"),
    "node name to None": (lambda q, s: q.set_global(s).set_node_name("linear_1", None), "ac"),
    "filter": (
        lambda q, s: q.set_global(s).set_filter_function(lambda n: module_path(n) != "b"),
        "ac",
    ),
    "io": (lambda q, s: q.set_io(s), ""),
}


class AnnotationChecks:
    """A backend annotates what the plan selects, nothing else, and accounts for every node."""

    @every_model
    def test_every_compute_node_has_a_decision(self, subject: Subject, model: str) -> None:
        for scheme in subject.executed_schemes:
            check_every_node(subject, ZOO[model], scheme)

    @every_model
    def test_what_stays_in_float_has_a_reason(self, subject: Subject, model: str) -> None:
        for scheme in subject.executed_schemes:
            check_reasons(subject, ZOO[model], scheme)

    @every_model
    def test_decisions_are_what_was_annotated(self, subject: Subject, model: str) -> None:
        for scheme in subject.executed_schemes:
            check_truth(subject, ZOO[model], scheme)

    @every_model
    def test_qspecs_are_those_of_the_configuration(self, subject: Subject, model: str) -> None:
        # Those for training come with one that is not.
        for scheme in subject.executed_schemes and subject.schemes:
            check_qspecs(subject, subject.annotated(ZOO[model], scheme), scheme)

    @every_model
    def test_a_value_with_two_users_is_not_fused_over(self, subject: Subject, model: str) -> None:
        config = subject.main_scheme.to_config()
        found = subject.annotated(ZOO[model])
        if config.output_activation is None:
            subject.not_asked(f"{subject.main_scheme} quantizes no activations")
        for decision in found.report.quantized:
            node = found.node(decision.node)
            assert len(node.users) < 2 or node.meta[Q_ANNOTATION_KEY].output_qspec is not None, (
                f"{subject.name}: {node.name} of {model} has {len(node.users)} users "
                f"({', '.join(user.name for user in node.users)}), and the pattern "
                f"{decision.pattern!r} leaves its value unquantized. Fuse an operator into the one "
                "before it only where nothing else reads what is between them."
            )

    @every_model
    def test_annotating_twice_changes_nothing(self, subject: Subject, model: str) -> None:
        found = subject.annotate(
            fresh_graph(ZOO[model]), subject.selected(subject.main_scheme), model
        )
        before = annotation_snapshot(found.graph)
        with subject.step(f"annotating {model} a second time"):
            again = found.quantizer.annotated(found.graph)
        after = annotation_snapshot(found.graph)
        changed = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
        assert not changed, (
            f"{subject.name}: annotating {model} a second time changes {', '.join(changed)}. Leave "
            "nodes alone that are annotated already."
        )
        assert again == found.report, (
            f"{subject.name}: annotating {model} a second time gives another report"
        )

    @every_model
    def test_nothing_is_quantized_under_none(self, subject: Subject, model: str) -> None:
        for quantizer, rule in (
            (subject.in_float(), "set_global(None)"),
            (subject.quantizer(), "no rule"),
        ):
            if quantizer is None:
                continue
            found = subject.annotate(fresh_graph(ZOO[model]), quantizer, model)
            touched = [n.name for n in found.graph.graph.nodes if says_something(n)]
            assert not touched, (
                f"{subject.name}: with {rule}, {', '.join(touched)} of {model} are annotated. "
                "Annotate a node only if plan.config_for(node) gives a configuration."
            )
            said = [decision.node for decision in found.report.quantized]
            assert not said, (
                f"{subject.name}: with {rule}, {', '.join(said)} of {model} are reported as "
                "quantized"
            )

    @pytest.mark.parametrize("selection", _SELECTIONS)
    def test_selection_is_honoured(self, subject: Subject, selection: str) -> None:
        scheme = subject.main_scheme
        select, expected = _SELECTIONS[selection]
        everything = subject.annotated(_THREE, scheme)
        if not _quantized_linears(everything):
            subject.not_asked(f"it quantizes no linear layer with {scheme}")
        try:
            quantizer = select(subject.quantizer(), scheme)
        except PartialQuantizationError:
            if subject.requirements.partial:
                raise
            subject.not_asked(
                f"it refuses the selection by {selection}, which leaves parts in float"
            )
        found = subject.annotate(fresh_graph(_THREE), quantizer, f"with {selection}")
        quantized = _quantized_linears(found)
        assert quantized == expected, (
            f"{subject.name}: selection by {selection} quantizes the linear layers "
            f"{quantized or 'none'} of a, b, c, expected {expected or 'none'}. Ask "
            "plan.config_for(node) for every node, those that a pattern fuses included."
        )

    def test_io_selects_the_inputs(self, subject: Subject) -> None:
        config = subject.main_scheme.to_config()
        if config.input_activation is None:
            subject.not_asked(f"{subject.main_scheme} quantizes no activations")
        found = subject.annotate(
            fresh_graph(_THREE), subject.quantizer().set_io(subject.main_scheme), "with set_io"
        )
        inputs = [n for n in found.graph.graph.nodes if n.op == "placeholder"]
        assert all(map(says_something, inputs)), (
            f"{subject.name}: set_io leaves the inputs unquantized. Annotate placeholders with the "
            "input_activation of plan.config_for(node)."
        )

    def test_the_annotation_of_another_quantizer_is_kept(self, subject: Subject) -> None:
        graph = fresh_graph(_THREE)
        foreign = QuantizationAnnotation(_annotated=True)
        quantizer = subject.selected(subject.main_scheme)
        with subject.step("transform_for_annotation of three_linears"):
            graph = quantizer.transform_for_annotation(graph)
        node = next(n for n in graph.graph.nodes if is_compute_node(n) and _is_linear(n))
        node.meta[Q_ANNOTATION_KEY] = foreign
        with subject.step("annotate of three_linears"):
            report = quantizer.annotated(graph)
        kept = node.meta[Q_ANNOTATION_KEY]
        assert (kept, says_something(node)) == (foreign, False), (
            f"{subject.name}: {node.name} had an annotation of another quantizer, and annotate "
            "wrote over it. Leave nodes alone that are annotated already."
        )
        assert not report[node.name].is_quantized, (
            f"{subject.name}: {node.name}, which another quantizer has annotated, is reported as "
            "quantized by this one"
        )


def check_every_node(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> None:
    """Check that there is one decision for every compute node, and none for others."""
    found = subject.annotated(model, scheme)
    decided = Counter(decision.node for decision in found.report.decisions)
    computing = [n.name for n in found.graph.graph.nodes if is_compute_node(n)]
    forgotten = [name for name in computing if name not in decided]
    assert not forgotten, (
        f"{subject.name}: annotate says nothing of {', '.join(forgotten)} in {model.name}. Add a "
        "Decision for each: quantized, or in float with the reason."
    )
    twice = [name for name, count in decided.items() if count > 1]
    assert not twice, (
        f"{subject.name}: annotate decides twice on {', '.join(twice)} in {model.name}"
    )
    unknown = sorted(set(decided) - set(computing))
    assert not unknown, (
        f"{subject.name}: annotate decides on {', '.join(unknown)}, which {model.name} does not "
        "have or which compute nothing"
    )
    assert found.report.backend == subject.name, (
        f"{subject.name}: the report says it is of {found.report.backend!r}"
    )


def check_reasons(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> None:
    """Check that every decision for float says why."""
    for decision in subject.annotated(model, scheme).report.in_float:
        assert decision.reason.strip(), (
            f"{subject.name}: {decision.node} ({decision.operator}) of {model.name} stays in float "
            f"under {scheme} without a reason. Say which rule or which limit of the backend it is."
        )


def check_truth(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> None:
    """Check that what is reported as quantized is annotated, and the rest is not."""
    found = subject.annotated(model, scheme)
    for decision in found.report.decisions:
        node = found.node(decision.node)
        if decision.is_quantized:
            assert _takes_part(found, node), (
                f"{subject.name}: {decision.node} of {model.name} is reported as quantized with "
                f"{decision.scheme}, and no qspec is on it. Annotate it, or report it in float."
            )
        else:
            assert not says_something(node), (
                f"{subject.name}: {decision.node} of {model.name} is reported in float "
                f"({decision.reason}), and has qspecs. Remove them, or report it as quantized."
            )


def _takes_part(found: Annotated, node: Node) -> bool:
    """Say whether a node has a qspec, or is inside a fused pattern that has one."""
    if says_something(node):
        return True
    annotation: Any = node.meta.get(Q_ANNOTATION_KEY)
    if annotation is None or not annotation._annotated:
        return False
    patterns = {decision.node: decision.pattern for decision in found.report.quantized}
    fused = [
        other
        for other in (*node.all_input_nodes, *node.users)
        if patterns.get(other.name) == patterns[node.name]
    ]
    return any(map(says_something, fused))


def _quantized_linears(found: Annotated) -> str:
    names = (
        module_path(node)
        for decision in found.report.quantized
        if _is_linear(node := found.node(decision.node))
    )
    return "".join(sorted(names))
