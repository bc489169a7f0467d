"""Decisions, diagnostics and the reports made of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import asdict, field, frozen

from qcore.schemes import QuantizationConfig

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = [
    "AnnotationReport",
    "Decision",
    "Diagnostic",
    "Severity",
    "grouped",
    "read_decisions",
    "write_decisions",
]

# The one key in ``GraphModule.meta`` that holds what was decided about its nodes.
_DECISIONS: Final = "qcore_decisions"

_Key = TypeVar("_Key", bound=Hashable)


class Severity(Enum):
    """How bad a diagnostic is."""

    ERROR = "error"
    WARNING = "warning"


@frozen
class Diagnostic:
    """Something a backend has to say about a node.

    Attributes:
        node: The node's name.
        operator: Its operator.
        module: The module it was traced in; empty for the root.
        reason: Why it is a problem.
        advice: What to do about it.
        severity: Errors stop the flow; warnings are reported.
    """

    node: str
    operator: str
    module: str
    reason: str
    advice: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.node} ({self.operator}{where}): {self.reason}.{advice}"


@frozen
class Decision:
    """What became of one compute node.

    Attributes:
        node: The node's name in the captured graph.
        operator: Its operator, as in ``aten.conv2d.default``.
        module: The module it was traced in; empty for the root.
        scheme: The scheme it is quantized with, or ``None`` where it stays in float.
        pattern: The pattern that quantized it, such as ``conv2d + hardtanh``.
        reason: Why it stays in float: the rule, or what the backend cannot do.
        advice: What to try to have it quantized.
        config: The configuration that ``scheme`` stands for, for the nodes that move its value on.
    """

    node: str
    operator: str
    module: str
    scheme: str | None = None
    pattern: str = ""
    reason: str = ""
    advice: str = ""
    config: QuantizationConfig | None = field(default=None, repr=False, eq=False)

    @property
    def is_quantized(self) -> bool:
        """Whether the node is quantized."""
        return self.scheme is not None


@frozen
class AnnotationReport:
    """A decision for every compute node of a model.

    Attributes:
        backend: The backend that decided.
        decisions: In the order of the graph; those of conditional bodies after the model's.
    """

    backend: str
    decisions: tuple[Decision, ...] = ()

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """The decisions that quantize."""
        return tuple(d for d in self.decisions if d.is_quantized)

    @property
    def in_float(self) -> tuple[Decision, ...]:
        """The decisions that leave a node in float."""
        return tuple(d for d in self.decisions if not d.is_quantized)

    @cached_property
    def by_node(self) -> dict[str, Decision]:
        """The decisions by the names of their nodes."""
        return {decision.node: decision for decision in self.decisions}

    def __getitem__(self, node: str) -> Decision:
        """Return the decision for a node, by its name."""
        return self.by_node[node]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "backend": self.backend,
            "quantized": len(self.quantized),
            "float": len(self.in_float),
            "decisions": [
                asdict(decision, filter=lambda attribute, _: attribute.name != "config")
                for decision in self.decisions
            ],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        schemes = Counter(d.scheme for d in self.quantized)
        lines = [
            f"{self.backend}: {len(self.quantized)} of {len(self.decisions)} compute nodes "
            f"quantized, {len(self.in_float)} in float"
        ]
        lines += [f"  {count:4d} x {scheme}" for scheme, count in schemes.most_common()]
        lines += _float_lines(self.in_float)
        return "\n".join(lines)


def write_decisions(model: GraphModule, report: AnnotationReport) -> None:
    """Put down what was decided about the nodes of a model, in place of what was before.

    Args:
        model: The annotated graph; the decisions travel in its ``meta`` through observing and
            converting.
        report: The decisions, those for the bodies of its conditionals and loops included.
    """
    model.meta[_DECISIONS] = report


def read_decisions(model: GraphModule) -> AnnotationReport | None:
    """Return what was decided about the nodes of a model; ``None`` where it was not annotated."""
    report: AnnotationReport | None = model.meta.get(_DECISIONS)
    return report


def _float_lines(decisions: Iterable[Decision]) -> list[str]:
    keyed = (((d.operator, d.reason, d.advice), _place(d.module, d.node)) for d in decisions)
    lines = []
    for (operator, reason, advice), count, names in grouped(keyed):
        lines.append(f"  {count:4d} x {operator} in float: {reason} [{names}]")
        if advice:
            lines.append(f"         {advice}")
    return lines


def _place(module: str, node: str) -> str:
    return f"{module}/{node}" if module else node


def grouped(
    keyed: Iterable[tuple[_Key, str]], most_names: int = 4
) -> Iterator[tuple[_Key, int, str]]:
    """Group names by what is said of them, for reports that stay readable on large models.

    Args:
        keyed: What is said, and the name it is said of.
        most_names: How many names of a group are shown.

    Yields:
        What is said, of how many names, and the first of these names.
    """
    groups: dict[_Key, list[str]] = {}
    for key, name in keyed:
        groups.setdefault(key, []).append(name)
    for key, names in groups.items():
        more = ", ..." if len(names) > most_names else ""
        yield key, len(names), ", ".join(names[:most_names]) + more
