"""Defects in what is annotated, and in what is said of it."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import attrs
import torch
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import qcore
from qcore.annotation import OperatorPattern, SupportTable, annotate_graph
from qcore.annotation.patterns import OperatorMatch
from qcore.annotation.rules import write_annotation
from qcore.plan import QuantizationPlan, RuleKind, Selectors
from qcore.report import AnnotationReport
from qcore_portable import SCHEMES, TABLE, PortableBackend

from .defects import calls, caught_by

aten = torch.ops.aten


def without(report: AnnotationReport, operator: str) -> AnnotationReport:
    kept = tuple(d for d in report.decisions if operator not in d.operator)
    return attrs.evolve(report, decisions=kept)


def edited(report: AnnotationReport, operator: str, **changes: Any) -> AnnotationReport:
    decisions = (
        attrs.evolve(d, **changes) if operator in d.operator else d for d in report.decisions
    )
    return attrs.evolve(report, decisions=tuple(decisions))


class Annotates(PortableBackend):
    """Annotates as the intact backend does, and lets a subclass spoil it."""

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        return self.spoiled(model, plan, annotate_graph(model, plan, TABLE, "portable"))

    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        raise NotImplementedError


@caught_by(
    calls("every_compute_node_has_a_decision", "residual_add"),
    "annotate says nothing of add in residual_add",
)
class SkipsAnOperatorSilently(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return without(report, "add")


@caught_by(
    calls("what_stays_in_float_has_a_reason", "attention"),
    r"softmax \(aten.softmax.int\) of attention stays in float under .* without a reason",
)
class GivesNoReason(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "softmax", reason="")


@caught_by(
    calls("decisions_are_what_was_annotated", "attention"),
    "softmax of attention is reported as quantized with 8a8w.*and no qspec is on it",
)
class ReportsWhatItDidNotDo(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "softmax", scheme="8a8w static per-channel", reason="")


@caught_by(
    calls("decisions_are_what_was_annotated", "residual_add"),
    "add of residual_add is reported in float .*, and has qspecs",
)
class QuantizesWhatItReportsInFloat(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "add", scheme=None, reason="portable has no quantized add")


@caught_by(
    calls("nothing_is_quantized_under_none", "linear"),
    r"with set_global\(None\), linear of linear are annotated",
)
class QuantizesUnderNone(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rules = Selectors()
        rules.add(RuleKind.GLOBAL, "", SCHEMES[0].to_config())
        return annotate_graph(model, QuantizationPlan(rules), TABLE, "portable")


class ForgetsRules(PortableBackend):
    """Reads some of the rules only."""

    forgets: ClassVar[RuleKind]

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rules = plan.selectors.mapped(lambda config: config)
        if self.forgets is RuleKind.FILTER:
            rules.filter_function = None
        else:
            rules.by_kind[self.forgets].clear()
        return annotate_graph(model, QuantizationPlan(rules), TABLE, "portable")


@caught_by(
    calls("selection_is_honoured", "module name to None"),
    "selection by module name to None quantizes the linear layers abc of a, b, c, expected ac",
)
class IgnoresModuleNames(ForgetsRules):
    forgets: ClassVar = RuleKind.MODULE_NAME


@caught_by(
    calls("selection_is_honoured", "module type"),
    "selection by module type quantizes the linear layers none of a, b, c, expected abc",
)
class IgnoresModuleTypes(ForgetsRules):
    forgets: ClassVar = RuleKind.MODULE_TYPE


@caught_by(calls("selection_is_honoured", "filter"), "selection by filter quantizes .*abc")
class IgnoresTheFilter(ForgetsRules):
    forgets: ClassVar = RuleKind.FILTER


@caught_by(calls("io_selects_the_inputs"), "set_io leaves the inputs unquantized")
class IgnoresIo(ForgetsRules):
    forgets: ClassVar = RuleKind.IO


class GreedyTable(SupportTable):
    """Fuses an activation whether or not something else reads the value before it."""

    def match(self, node: Any, config: Any, plan: Any) -> Any:
        found = super().match(node, config, plan)
        if found is not None:
            for user in node.users:
                if user.target in found.pattern.fuses:
                    return OperatorMatch(found.pattern, node, None, user)
        return found


@caught_by(
    calls("a_value_with_two_users_is_not_fused_over", "conv_with_two_users"),
    r"conv2d of conv_with_two_users has 2 users \(relu, add\).*leaves its value unquantized",
)
class FusesAValueWithTwoUsers(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        return annotate_graph(model, plan, GreedyTable(TABLE.patterns), "portable")


@caught_by(
    calls("annotating_twice_changes_nothing", "linear"),
    "annotating linear a second time changes linear",
)
class AnnotatesAgain(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        for node in model.graph.nodes:
            if node.target is aten.linear.default and not node.meta.setdefault("seen", []):
                node.meta["seen"].append(1)
            elif node.target is aten.linear.default:
                write_annotation(node, output=plan.config_for(node).output_activation)
        return report


@caught_by(
    calls("the_annotation_of_another_quantizer_is_kept"),
    "linear had an annotation of another quantizer, and annotate wrote over it",
)
class OverwritesAnotherQuantizer(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            node.meta.pop(Q_ANNOTATION_KEY, None)
        return annotate_graph(model, plan, TABLE, "portable")


@caught_by(
    calls("annotation_is_the_same_every_time"),
    "annotating .* twice from the start gives different",
)
class AnnotatesByChance(PortableBackend):
    dice: ClassVar = random.Random(1)

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rows: list[OperatorPattern] = list(TABLE.patterns)
        rows.pop(self.dice.randrange(3))
        return annotate_graph(model, plan, SupportTable(rows), "portable")


@caught_by(
    calls("cost_is_linear_in_the_number_of_nodes"),
    "4 times the nodes take .* times the function calls",
)
class WalksTheGraphForEveryNode(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        for _ in model.graph.nodes:
            sum(bool(plan.select(node)) for node in model.graph.nodes)
        return report
