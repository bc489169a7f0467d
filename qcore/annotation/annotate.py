"""The walk that applies a support table to a graph and accounts for every compute node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch.fx import GraphModule, Node

from qcore.annotation.alternatives import advice_on
from qcore.annotation.clusters import Outcome, annotate_clusters
from qcore.annotation.patterns import (
    INTEGERS_ONLY,
    OperatorMatch,
    OperatorPattern,
    Rejection,
    SupportTable,
)
from qcore.annotation.rules import (
    annotation_of,
    is_quantized_value,
    sharing_with,
    write_annotation,
)
from qcore.compat.torchao import Q_ANNOTATION_KEY
from qcore.configs import with_weight_scales
from qcore.graph import (
    computes_floats,
    float_operands,
    is_compute_node,
    is_float_tensor,
    module_path,
    operator_name,
)
from qcore.plan import QuantizationPlan, explain
from qcore.report import AnnotationReport, Decision, read_decisions
from qcore.schemes import QuantizationConfig, QuantizationScheme

__all__ = ["annotate_graph", "decide"]

_NOT_OURS: Final = Rejection("another quantizer has annotated it")


def annotate_graph(
    model: GraphModule, plan: QuantizationPlan, table: SupportTable, backend: str
) -> AnnotationReport:
    """Annotate a graph with the patterns of a support table, in one pass over its nodes.

    Nodes that carry an annotation of another quantizer are left as they are; of those annotated
    before by qcore, the decisions in the model's ``meta`` hold.

    Args:
        model: The captured model.
        plan: What the user selected.
        table: What the backend quantizes.
        backend: The backend's name, for reports.

    Returns:
        A decision for every compute node.
    """
    return AnnotationReport(backend, tuple(_annotate(model, plan, table, backend).values()))


def decide(
    model: GraphModule, plan: QuantizationPlan, table: SupportTable, backend: str
) -> dict[Node, Decision]:
    """Say what would become of every compute node of a graph, and write nothing.

    Args:
        model: The captured model.
        plan: What the user selected.
        table: What the backend quantizes.
        backend: The backend's name, for reasons.

    Returns:
        What :func:`annotate_graph` would decide, by node.
    """
    before = {node: node.meta.get(Q_ANNOTATION_KEY) for node in model.graph.nodes}
    try:
        return _annotate(model, plan, table, backend)
    finally:
        for node, annotation in before.items():
            node.meta.pop(Q_ANNOTATION_KEY, None)
            if annotation is not None:
                node.meta[Q_ANNOTATION_KEY] = annotation


def _annotate(
    model: GraphModule, plan: QuantizationPlan, table: SupportTable, backend: str
) -> dict[Node, Decision]:
    earlier = (read_decisions(model) or AnnotationReport(backend)).by_node
    decided: dict[Node, Decision] = {}
    for node in model.graph.nodes:
        if node.op in ("placeholder", "output"):
            _annotate_io(node, plan)
        elif is_compute_node(node) and node not in decided and not _waits(node, table):
            if annotation_of(node) is None:
                decided.update(_decide(node, model, plan, table, backend, decided))
            else:
                decided[node] = earlier.get(node.name) or _float(node, _NOT_OURS)
    for node, outcome in annotate_clusters(model, plan, table).items():
        decided[node] = _clustered(node, outcome)
    return {n: decided[n] for n in model.graph.nodes if n in decided and is_compute_node(n)}


def _waits(node: Node, table: SupportTable) -> bool:
    pattern = table.pattern_for(node)
    return pattern is not None and pattern.shares_range and annotation_of(node) is None


def _clustered(node: Node, outcome: Outcome) -> Decision:
    if isinstance(outcome, Rejection):
        return _float(node, outcome)
    return _decision(node, scheme=outcome[0], pattern=outcome[1])


def _annotate_io(node: Node, plan: QuantizationPlan) -> None:
    config = plan.config_for(node)
    if config is None or annotation_of(node) is not None:
        return
    if node.op == "placeholder":
        if is_float_tensor(node):
            write_annotation(node, output=config.input_activation)
        return
    write_annotation(node, inputs=dict.fromkeys(float_operands(node), config.output_activation))


def _decide(
    node: Node,
    model: GraphModule,
    plan: QuantizationPlan,
    table: SupportTable,
    backend: str,
    decided: Mapping[Node, Decision],
) -> dict[Node, Decision]:
    selection = plan.select(node)
    if selection.is_unset:
        following = _follow_input(node, model, table, decided)
        if following is not None:
            return {node: following}
    if selection.config is None:
        advice = "Select it with set_global(...)." if selection.is_unset else ""
        return {node: _float(node, Rejection(explain(selection), advice))}
    match = table.match(node, selection.config, plan)
    if match is None:
        return {node: _float(node, _not_in_table(node, table, backend))}
    config, scheme = _settled(match.pattern, selection.config)
    rejection = _reject(match, config, scheme, model, backend)
    if rejection is None:
        assert match.pattern.rule is not None, f"the pattern {match.pattern.name} has no rule"
        rejection = match.pattern.rule(match, config)
    if rejection is not None:
        return {node: _float(node, rejection)}
    named = str(scheme)
    return {
        member: _decision(member, scheme=named, pattern=match.label, config=config)
        for member in match.nodes
    }


def _settled(
    pattern: OperatorPattern, config: QuantizationConfig
) -> tuple[QuantizationConfig, QuantizationScheme]:
    """Scale weights as a row says, where the configuration leaves that to the backend."""
    scheme = QuantizationScheme.from_config(config)
    if scheme.granularity != "per_operator" or not hasattr(pattern.rule, "weight"):
        return config, scheme
    config = with_weight_scales(config, pattern.granularity != "per_tensor")
    return config, QuantizationScheme.from_config(config)


def _follow_input(
    node: Node, model: GraphModule, table: SupportTable, decided: Mapping[Node, Decision]
) -> Decision | None:
    """Decide on a node that no rule selects and that only moves quantized data on."""
    pattern = table.pattern_for(node)
    source = node.args[0] if node.args else None
    if pattern is None or not pattern.follows_input or not isinstance(source, Node):
        return None
    before = decided.get(source)
    if before is None or before.config is None or not is_quantized_value(source):
        return None
    if not is_float_tensor(node):
        return None
    rejection = OperatorMatch(pattern, node).rejection(before.config, model)
    if rejection is not None:
        return _float(node, rejection)
    shared = sharing_with(source)
    write_annotation(node, {source: shared}, shared)
    scheme = str(QuantizationScheme.from_config(before.config))
    return _decision(node, scheme=scheme, pattern=pattern.name, config=before.config)


def _float(node: Node, rejection: Rejection) -> Decision:
    return _decision(node, reason=rejection.reason, advice=rejection.advice)


def _decision(node: Node, **what: Any) -> Decision:
    return Decision(node.name, operator_name(node), module_path(node), **what)


def _reject(
    match: OperatorMatch,
    config: QuantizationConfig,
    scheme: QuantizationScheme,
    model: GraphModule,
    backend: str,
) -> Rejection | None:
    pattern = match.pattern
    if config.input_activation is None and not hasattr(pattern.rule, "weight"):
        return Rejection(
            "it has no weight, and a weight-only configuration quantizes nothing else",
            "Give it a configuration with input_activation set, or leave it in float.",
        )
    if pattern.granularity not in (None, scheme.granularity):
        wanted, asked = (
            str(g).replace("_", "-") for g in (pattern.granularity, scheme.granularity)
        )
        return Rejection(
            f"{backend} scales weights of {pattern.name} {wanted}, and its configuration {asked}",
            f'Give it one that scales them {wanted}, such as "{scheme.name} {wanted}".',
        )
    if not (pattern.dynamic if scheme.is_dynamic else pattern.static):
        other = "static" if scheme.is_dynamic else "dynamic"
        return Rejection(
            f"{backend} runs {pattern.name} with {other} activations only",
            f"Give it a {other} configuration, or leave it in float.",
        )
    return match.rejection(config, model)


def _not_in_table(node: Node, table: SupportTable, backend: str) -> Rejection:
    if not any(map(computes_floats, (*node.all_input_nodes, node))):
        return INTEGERS_ONLY
    return Rejection(f"{backend} has no quantized {operator_name(node)}", advice_on(node, table))
