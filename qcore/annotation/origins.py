"""What became of each operator of a model as captured, when the graph is no longer the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import define, evolve, frozen
from torch.fx import GraphModule

from qcore.compat.torchao import names_before_fusion
from qcore.graph import is_compute_node, module_path, operator_name
from qcore.report import AnnotationReport, Decision

__all__ = ["account_for", "remember_captured"]

#: Key in ``GraphModule.meta`` of the nodes as captured.
_CAPTURED: Final = "qcore_captured"
#: Key in ``node.meta`` of the name that a node, or the one it was made of, had when captured.
_NAME: Final = "qcore_captured_name"


@frozen
class _Captured:
    """A node as captured: its decision, yet to be made, and the names of its inputs."""

    decision: Decision
    is_compute: bool
    inputs: tuple[str, ...]


def remember_captured(model: GraphModule) -> None:
    """Put down the nodes of a captured model, before anything rewrites it; once for a model.

    What torchao folded into convolutions before a quantizer was asked is put down by its name.
    """
    if _CAPTURED in model.meta:
        return
    found: dict[str, _Captured] = {}
    for node in model.graph.nodes:
        node.meta[_NAME] = node.name
        decision = Decision(node.name, operator_name(node), module_path(node))
        inputs = tuple(source.name for source in node.all_input_nodes)
        found[node.name] = _Captured(decision, is_compute_node(node), inputs)
    before = ""
    for name in names_before_fusion():
        if name in found:
            before = name if found[name].is_compute else before
        elif before and "batch_norm" in name:
            folded = Decision(name, "aten.batch_norm.default", found[before].decision.module)
            found[name] = _Captured(folded, True, (before,))
    model.meta[_CAPTURED] = found


def account_for(model: GraphModule, report: AnnotationReport) -> AnnotationReport:
    """Add decisions for the compute nodes that a model had when it was captured, and has no more.

    Args:
        model: The annotated model.
        report: The decisions for its nodes.

    Returns:
        The report, in the order of the captured model.
    """
    found: dict[str, _Captured] = model.meta.get(_CAPTURED, {})
    parts: dict[str, list[Decision]] = {}
    origins: dict[str, str] = {}
    for node in model.graph.nodes:
        decision, origin = report.by_node.get(node.name), node.meta.get(_NAME)
        if decision is not None and origin is not None:
            parts.setdefault(origin, []).append(decision)
            origins[decision.node] = origin
    search = _Search(found, report, parts)
    order = {name: index for index, name in enumerate(found)}
    missing = [
        search.decided(name)
        for name, node in found.items()
        if node.is_compute and name not in report.by_node
    ]
    decisions: list[Decision] = []
    for decision in report.decisions:
        place = order.get(origins.get(decision.node, ""), -1)
        while missing and order[missing[0].node] <= place:
            decisions.append(missing.pop(0))
        decisions.append(decision)
    return evolve(report, decisions=(*decisions, *missing))


@define
class _Search:
    _found: dict[str, _Captured]
    _report: AnnotationReport
    _parts: dict[str, list[Decision]]

    def decided(self, name: str) -> Decision:
        """Return the decision for a captured node of which nothing has the name any more."""
        lost = self._found[name].decision
        if parts := self._parts.get(name):
            return _with_parts(lost, parts)
        other = next(self._around(name), None)
        if other is None:
            return evolve(lost, reason="nothing is left of it: it is computed ahead, or unread")
        what = f"folded into {_short(other)}"
        if other.is_quantized:
            return evolve(lost, scheme=other.scheme, pattern=what)
        return evolve(lost, reason=f"{what}, and {other.reason}", advice=other.advice)

    def _around(self, name: str) -> Iterator[Decision]:
        """Yield decisions for what a node was folded into, the likeliest first.

        That is where its value comes from; of what is computed from constants alone, which nothing
        computes any more, where it goes.
        """
        users: dict[str, list[str]] = {}
        for user, node in self._found.items():
            for source in node.inputs:
                users.setdefault(source, []).append(user)
        sources = {source: node.inputs for source, node in self._found.items()}
        for direction in (sources, users):
            pending, seen = [name], {name}
            while pending:
                for other in direction.get(pending.pop(0), ()):
                    if other in seen:
                        continue
                    seen.add(other)
                    decision = self._report.by_node.get(other)
                    yield from [decision] if decision else self._parts.get(other, [])[-1:]
                    pending.append(other)


def _with_parts(lost: Decision, parts: list[Decision]) -> Decision:
    names = ", ".join(dict.fromkeys(map(_short, parts)))
    what = f"taken apart into {names}"
    in_float = [part for part in parts if not part.is_quantized]
    if not in_float:
        return evolve(lost, scheme=parts[0].scheme, pattern=what)
    first = in_float[0]
    return evolve(lost, reason=f"{what}: {_short(first)}: {first.reason}", advice=first.advice)


def _short(decision: Decision) -> str:
    """Return an operator as a reader calls it: ``conv2d`` for ``aten.conv2d.default``."""
    parts = decision.operator.split(".")
    return parts[1] if len(parts) > 2 else decision.operator
