"""Partitioners that leave chosen nodes to portable kernels, and note what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from qcore.report import NodeRecord
from qcore_executorch.cycles import split_cycles
from qcore_executorch.importing import import_executorch
from qcore_executorch.inspection import DELEGATION_TAG, computes, quantizes, record

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Veto", "name_origins", "origin"]

# Key in a node's ``custom`` metadata, which every tracing keeps.
_ORIGIN: Final = "qcore_node"


def name_origins(program: ExportedProgram) -> None:
    """Let every node of a program be known by its name, whatever it is decomposed into.

    Args:
        program: The program that is about to be lowered; its metadata changes.
    """
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.meta["custom"] = {**(node.meta.get("custom") or {}), _ORIGIN: node.name}


def origin(node: Node) -> str:
    """Return the name of the node that a node of the edge graph came from.

    Args:
        node: A node of the edge graph.

    Returns:
        The name in the converted model; its own where a pass of the compiler inserted it.
    """
    return str((node.meta.get("custom") or {}).get(_ORIGIN, node.name))


@attrs.define
class Veto:
    """What partitioners may not take, and what they took.

    Attributes:
        refused: Why a node stays on portable kernels, by its name in the converted model.
        taken: The compute nodes that the partitioners took, by the same names, in the order of
            the graph.
        reasons: Why nodes of the edge graph were refused, by their names there.
    """

    refused: Mapping[str, str] = attrs.field(factory=dict)
    taken: dict[str, NodeRecord] = attrs.field(factory=dict)
    reasons: dict[str, str] = attrs.field(factory=dict)

    def over(self, partitioners: Sequence[Any]) -> list[Any]:
        """Wrap partitioners.

        Args:
            partitioners: ExecuTorch's partitioners.

        Returns:
            Partitioners that ask them about everything else.
        """
        base = import_executorch("executorch.exir.backend.partitioner").Partitioner
        veto = self

        class Vetoed(base):  # type: ignore[misc,valid-type]
            """A partitioner that does not see what is refused."""

            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def ops_to_not_decompose(self, program: ExportedProgram) -> Any:
                """Decompose what is refused: kernels exist for the parts only."""
                operators, wanted = self.inner.ops_to_not_decompose(program)
                return operators, veto.filter(wanted)

            def partition(self, exported_program: ExportedProgram) -> Any:
                """Partition the rest."""
                return veto.partition(self.inner, exported_program)

        return [Vetoed(inner) for inner in partitioners]

    def filter(self, wanted: Callable[[Node], bool] | None) -> Callable[[Node], bool] | None:
        """Return which operators a partitioner wants whole, without those that are refused."""
        if not self.refused:
            return wanted
        return lambda n: origin(n) not in self.refused and (wanted is None or wanted(n))

    def partition(self, partitioner: Any, program: ExportedProgram) -> Any:
        """Partition a program in which the refused nodes call something unknown."""
        hidden = {n: n.target for n in program.graph.nodes if origin(n) in self.refused}
        hidden = {n: target for n, target in hidden.items() if n.op == "call_function"}
        for node in hidden:
            node.target = _left_to_portable_kernels
            self.reasons[node.name] = self.refused[origin(node)]
        try:
            result = partitioner.partition(program)
        finally:
            for node, target in hidden.items():
                node.target = target
        split_cycles(result)
        nodes = result.tagged_exported_program.graph.nodes
        delegated = [n for n in nodes if DELEGATION_TAG in n.meta]
        computing = [n for n in delegated if computes(n) and not quantizes(n)]
        for node in computing:
            self.taken.setdefault(origin(node), record(node, "", ""))
        if hidden:
            _drop_idle(result, {node.meta[DELEGATION_TAG] for node in computing})
        return result


def _left_to_portable_kernels(*args: Any) -> Any:
    raise NotImplementedError(args)


def _drop_idle(result: Any, computing: set[str]) -> None:
    """Drop the delegates that only quantize and dequantize."""
    for tag in set(result.partition_tags) - computing:
        del result.partition_tags[tag]
    for node in result.tagged_exported_program.graph.nodes:
        if node.meta.get(DELEGATION_TAG, "") not in {"", *computing}:
            del node.meta[DELEGATION_TAG]
