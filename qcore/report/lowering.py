"""What happened to a model while it was turned into a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import attrs

from qcore.report.base import Report
from qcore.report.serialize import figure

__all__ = ["LoweringReport", "NodeRecord", "StrayNode"]


@attrs.frozen
class NodeRecord:
    """One compute node of the program.

    Attributes:
        name: The node's name in the lowered graph.
        operator: The operator it calls, as ``aten.convolution.default``.
        module: Path of the module it came from; empty for the model itself or where unknown.
        reason: Why no delegate took it; empty for a delegated node.
        advice: What to try to have it delegated; empty where the reason says it.
    """

    name: str
    operator: str
    module: str = ""
    reason: str = ""
    advice: str = ""

    @property
    def place(self) -> str:
        """The name with the path of the module."""
        return f"{self.module}/{self.name}" if self.module else self.name

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.name} ({self.operator}){where}{why}"


@attrs.frozen
class StrayNode:
    """A quantize or dequantize node that no delegate took.

    Attributes:
        name: The node's name in the lowered graph.
        operator: The operator it calls.
        feeds: Names of the nodes that read its result.
        module: Path of the module it came from; empty where unknown.
    """

    name: str
    operator: str
    feeds: tuple[str, ...] = ()
    module: str = ""

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.name} ({self.operator}){where}, feeds {', '.join(self.feeds) or 'nothing'}"


def _table(seconds: Mapping[str, float]) -> dict[str, float]:
    return dict(seconds)


@attrs.frozen
class LoweringReport(Report):
    """What was delegated, what was not and why, and what the lowering cost.

    An undelegated node is no failure: it runs on the kernels of the runtime around the delegates.

    Attributes:
        delegates: How many delegates (blobs compiled by the backend) the program holds.
        delegated: The compute nodes inside them.
        undelegated: The compute nodes outside them.
        stray: The quantize and dequantize nodes outside them.
        program_bytes: Size of the program in bytes.
        seconds: Wall time of each stage in seconds, in the order the stages ran.
        complete: False for a program read from a file, which records none of the above but its
            size.
    """

    kind: ClassVar[str] = "lowering"

    #: Where undelegated nodes run, for the text; a library for backends may name it.
    elsewhere: ClassVar[str] = "outside the delegates"

    delegates: int = 0
    delegated: tuple[NodeRecord, ...] = ()
    undelegated: tuple[NodeRecord, ...] = ()
    stray: tuple[StrayNode, ...] = ()
    program_bytes: int = 0
    seconds: Mapping[str, float] = attrs.field(factory=dict, converter=_table, eq=False)
    complete: bool = True

    @figure
    def delegated_ops(self) -> dict[str, int]:
        """Operators inside the delegates with their number of nodes, the most frequent first."""
        return dict(Counter(node.operator for node in self.delegated).most_common())

    @figure
    def undelegated_ops(self) -> dict[str, int]:
        """Operators outside the delegates with their number of nodes, the most frequent first."""
        return dict(Counter(node.operator for node in self.undelegated).most_common())

    @figure
    def is_fully_delegated(self) -> bool:
        """Whether it is known that every compute node is inside a delegate."""
        return self.complete and not self.undelegated and not self.stray
