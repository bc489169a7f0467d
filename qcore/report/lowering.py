"""What happened to a model while it was turned into a program."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from qcore.report.decisions import grouped

__all__ = ["LoweringReport", "NodeRecord", "StrayNode"]


@attrs.frozen
class NodeRecord:
    """One compute node of the program.

    Attributes:
        name: The node's name in the lowered graph.
        operator: The operator it calls, as ``aten.convolution.default``.
        module: Path of the module it came from; empty for the model itself or where unknown.
        reason: Why no delegate took it; empty for a delegated node.
    """

    name: str
    operator: str
    module: str = ""
    reason: str = ""

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
class LoweringReport:
    """What was delegated, what was not and why, and what the lowering cost.

    An undelegated node is no failure: it runs on the kernels of the runtime around the delegates.

    Attributes:
        backend: Name of the backend the program is for.
        delegates: How many delegates (blobs compiled by the backend) the program holds.
        delegated: The compute nodes inside them.
        undelegated: The compute nodes outside them.
        stray: The quantize and dequantize nodes outside them.
        program_bytes: Size of the program in bytes.
        seconds: Wall time of each stage in seconds, in the order the stages ran.
        complete: False for a program read from a file, which records none of the above but its
            size.
    """

    backend: str
    delegates: int = 0
    delegated: tuple[NodeRecord, ...] = ()
    undelegated: tuple[NodeRecord, ...] = ()
    stray: tuple[StrayNode, ...] = ()
    program_bytes: int = 0
    seconds: Mapping[str, float] = attrs.field(factory=dict, converter=_table, eq=False)
    complete: bool = True

    @property
    def delegated_ops(self) -> dict[str, int]:
        """Operators inside the delegates with their number of nodes, the most frequent first."""
        return dict(Counter(node.operator for node in self.delegated).most_common())

    @property
    def undelegated_ops(self) -> dict[str, int]:
        """Operators outside the delegates with their number of nodes, the most frequent first."""
        return dict(Counter(node.operator for node in self.undelegated).most_common())

    @property
    def is_fully_delegated(self) -> bool:
        """Whether it is known that every compute node is inside a delegate."""
        return self.complete and not self.undelegated and not self.stray

    #: Where undelegated nodes run; a library for backends may name it.
    elsewhere: ClassVar[str] = "outside the delegates"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a backend has to say beside that, a line each."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data.

        Returns:
            A dictionary of strings, numbers, lists and dictionaries.
        """
        return {
            "backend": self.backend,
            "complete": self.complete,
            "delegates": self.delegates,
            "delegated_ops": self.delegated_ops,
            "delegated": [attrs.asdict(node) for node in self.delegated],
            "undelegated": [attrs.asdict(node) for node in self.undelegated],
            "stray": [{**attrs.asdict(node), "feeds": list(node.feeds)} for node in self.stray],
            "program_bytes": self.program_bytes,
            "seconds": dict(self.seconds),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON.

        Args:
            indent: Spaces per level; None puts everything on one line.

        Returns:
            The text of ``to_dict()`` as a JSON object.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        if not self.complete:
            return (
                f"{self.backend}: {_size(self.program_bytes)}, read from a file, "
                "which does not record what was delegated"
            )
        timing = ", ".join(f"{stage} {value:.1f} s" for stage, value in self.seconds.items())
        lines = [
            f"{self.backend}: {_count(self.delegates, 'delegate')} with "
            f"{_count(len(self.delegated), 'compute node')}, {_size(self.program_bytes)}"
            + (f" ({timing})" if timing else "")
        ]
        if self.delegated:
            ops = ", ".join(f"{name} x{count}" for name, count in self.delegated_ops.items())
            lines.append(f"  delegated: {ops}")
        if self.undelegated:
            lines.append(f"  {self.elsewhere} ({len(self.undelegated)}), they still run:")
            keyed = (((node.operator, node.reason), node.place) for node in self.undelegated)
            lines.extend(
                f"  {count:4d} x {operator}: {reason} [{names}]"
                for (operator, reason), count, names in grouped(keyed)
            )
        if self.stray:
            lines.append(f"  quantize/dequantize outside the delegates ({len(self.stray)}):")
            lines.extend(f"    {node}" for node in self.stray)
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.2f} MB"
