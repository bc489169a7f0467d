"""Decisions, diagnostics and the reports made of them."""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen

from qcore.report.base import Report
from qcore.report.serialize import UNSERIALIZED, figure

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = [
    "AnnotationReport",
    "Decision",
    "Diagnostic",
    "Severity",
    "read_decisions",
    "write_decisions",
]

# The one key in ``GraphModule.meta`` that holds what was decided about its nodes.
_DECISIONS: Final = "qcore_decisions"


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
    config: Any = field(default=None, repr=False, eq=False, metadata=UNSERIALIZED)

    @property
    def is_quantized(self) -> bool:
        """Whether the node is quantized."""
        return self.scheme is not None

    @property
    def place(self) -> str:
        """The node's name with the path of its module."""
        return f"{self.module}/{self.node}" if self.module else self.node


@frozen
class AnnotationReport(Report):
    """A decision for every compute node of a model.

    Attributes:
        decisions: In the order of the graph; those of conditional bodies after the model's.
        warnings: What was said of the calibration samples and of the model made from them.
    """

    kind: ClassVar[str] = "annotation"
    keys: ClassVar = {"quantized_count": "quantized", "float_count": "float"}

    decisions: tuple[Decision, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """The decisions that quantize."""
        return tuple(d for d in self.decisions if d.is_quantized)

    @property
    def in_float(self) -> tuple[Decision, ...]:
        """The decisions that leave a node in float."""
        return tuple(d for d in self.decisions if not d.is_quantized)

    @figure
    def quantized_count(self) -> int:
        """How many compute nodes are quantized."""
        return len(self.quantized)

    @figure
    def float_count(self) -> int:
        """How many compute nodes stay in float."""
        return len(self.in_float)

    @cached_property
    def by_node(self) -> dict[str, Decision]:
        """The decisions by the names of their nodes."""
        return {decision.node: decision for decision in self.decisions}

    def __getitem__(self, node: str) -> Decision:
        """Return the decision for a node, by its name."""
        return self.by_node[node]


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
