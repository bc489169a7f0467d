"""Operators that only move, clamp or compare data: what they connect has one range.

A whole-model backend quantizes them even where nothing before them is quantized, and a value that
enters such a cluster must not be rescaled inside of it. Both need a view of the graph that a walk
from the inputs to the outputs does not give, so clusters are annotated after everything else.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Final

import torch
from attrs import define
from torch.fx import GraphModule, Node

from qcore.annotation.patterns import (
    INTEGERS_ONLY,
    OperatorMatch,
    Rejection,
    SupportTable,
    without_float32,
)
from qcore.annotation.rules import annotation_of, write_annotation
from qcore.compat.torchao import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qcore.graph import float_operands, is_float_tensor
from qcore.plan import QuantizationPlan, explain
from qcore.schemes import QuantizationConfig, QuantizationScheme

__all__ = ["annotate_clusters"]

#: For one node of a cluster: its scheme and pattern, or why it stays in float.
Outcome = tuple[str, str] | Rejection

_MOVES_FLOAT: Final = Rejection(
    "its input is in float, so it moves float data",
    "It is quantized when an operator next to it is.",
)


def annotate_clusters(
    model: GraphModule, plan: QuantizationPlan, table: SupportTable
) -> dict[Node, Outcome]:
    """Annotate the operators of a table that share one range with what they are connected to.

    A cluster takes the range of the quantized value that enters it, else that of a quantized
    operator that reads it. Between model inputs and outputs it has a range of its own. Amid float
    operators it stays in float. An explicit ``None`` of the user keeps a node out.
    """
    outcomes: dict[Node, Outcome] = {}
    members: set[Node] = set()
    for node in model.graph.nodes:
        pattern = table.pattern_for(node) if node.op == "call_function" else None
        if pattern is None or not pattern.shares_range or annotation_of(node) is not None:
            continue
        rejection = _keep_out(node, model, plan, table)
        if rejection is None:
            members.add(node)
        else:
            outcomes[node] = rejection
    for node in [node for node in members if _picks_float(node, members)]:
        members.remove(node)
        outcomes[node] = _MOVES_FLOAT
    for node in sorted(members):
        if node in members:
            cluster = _Cluster.around(node, members)
            members.difference_update(cluster.nodes)
            outcomes.update(cluster.annotate(plan, table))
    return outcomes


def _keep_out(
    node: Node, model: GraphModule, plan: QuantizationPlan, table: SupportTable
) -> Rejection | None:
    selection = plan.select(node)
    if selection.config is None and not selection.is_unset:
        return Rejection(explain(selection))
    pattern = table.pattern_for(node)
    assert pattern is not None
    config = selection.config or QuantizationConfig(None, None, None, None)
    return OperatorMatch(pattern, node).rejection(config, model)


def _picks_float(node: Node, members: Collection[Node]) -> bool:
    """Say whether a node picks a result of an operator that stays in float."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, Node) and source not in members and annotation_of(source) is None


def _is_tuple(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


@define(eq=False)
class _Cluster:
    """Nodes connected by values of one range, in the order of the graph."""

    nodes: list[Node]

    @classmethod
    def around(cls, start: Node, members: Collection[Node]) -> _Cluster:
        found, pending = {start}, [start]
        while pending:
            for neighbour in _connected(pending.pop()):
                if neighbour in members and neighbour not in found:
                    found.add(neighbour)
                    pending.append(neighbour)
        return cls(sorted(found))

    def annotate(
        self, plan: QuantizationPlan, table: SupportTable
    ) -> Iterator[tuple[Node, Outcome]]:
        """Write the annotations, and say what became of each node."""
        edges = [(source, node) for node in self.nodes for source in float_operands(node)]
        if not edges and not any(is_float_tensor(node) for node in self.nodes):
            return iter([(node, without_float32(node) or INTEGERS_ONLY) for node in self.nodes])
        spec, scheme = self._range(edges, plan)
        if spec is None or not edges:
            return iter([(node, _MOVES_FLOAT) for node in self.nodes])
        root = edges[0]
        shared = SharedQuantizationSpec(root)
        for node in self.nodes:
            inputs: dict[Node, QuantizationSpecBase | None] = dict.fromkeys(
                float_operands(node), shared
            )
            if node is root[1]:
                inputs[root[0]] = spec
            write_annotation(node, inputs, shared if is_float_tensor(node) else None)
        patterns = [(node, table.pattern_for(node)) for node in self.nodes]
        return iter([(node, (scheme, p.name)) for node, p in patterns if p is not None])

    def _range(
        self, edges: list[tuple[Node, Node]], plan: QuantizationPlan
    ) -> tuple[QuantizationSpecBase | None, str]:
        """Return the qspec that the cluster takes over, and the scheme's name."""
        inside = set(self.nodes)
        config = next((c for node in self.nodes if (c := _static(plan, node))), None)
        in_float = False
        for source, _ in edges:
            if source in inside:
                continue
            annotation = annotation_of(source)
            if annotation is not None and _can_share(annotation.output_qspec):
                return annotation.output_qspec, _scheme(plan, source, config)
            in_float |= _is_float_operator(source)
        for node in self.nodes:
            for user in node.users:
                annotation = None if user in inside else annotation_of(user)
                if annotation is not None and is_float_tensor(node):
                    spec = annotation.input_qspec_map.get(node)
                    if _can_share(spec) and not isinstance(spec, FixedQParamsQuantizationSpec):
                        return spec, _scheme(plan, user, config)
                in_float |= user not in inside and annotation is None and _is_float_operator(user)
        if config is None or in_float:
            return None, ""
        return config.input_activation, str(QuantizationScheme.from_config(config))


def _connected(node: Node) -> Iterator[Node]:
    for source in node.all_input_nodes:
        if is_float_tensor(source) or _is_tuple(source):
            yield source
    if is_float_tensor(node) or _is_tuple(node):
        yield from node.users


def _can_share(spec: QuantizationSpecBase | None) -> bool:
    """Say whether inner values may have this range: uint8 is for inputs and outputs alone."""
    if isinstance(spec, QuantizationSpec):
        per_tensor = spec.qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        return spec.dtype is not torch.uint8 and per_tensor and not spec.is_dynamic
    return isinstance(spec, (SharedQuantizationSpec, FixedQParamsQuantizationSpec))


def _is_float_operator(node: Node) -> bool:
    """Say whether a node that carries no annotation computes in float."""
    if node.op != "call_function" or annotation_of(node) is not None:
        return False
    return is_float_tensor(node) or any(map(is_float_tensor, node.all_input_nodes))


def _static(plan: QuantizationPlan, node: Node) -> QuantizationConfig | None:
    config = plan.config_for(node)
    return config if config is not None and config.output_activation is not None else None


def _scheme(plan: QuantizationPlan, node: Node, config: QuantizationConfig | None) -> str:
    chosen = plan.config_for(node) or config
    return "" if chosen is None else str(QuantizationScheme.from_config(chosen))
