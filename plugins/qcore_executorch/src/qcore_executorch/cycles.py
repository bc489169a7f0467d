"""Partitions of a graph that wait for each other are split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcore_executorch.inspection import DELEGATION_TAG

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["split_cycles"]


def split_cycles(result: Any) -> None:
    """Split the partitions of which each waits for an output of the other.

    ExecuTorch's configuration-based partitioners join whatever shares a node, and merge partitions
    two at a time: through what lies between them, or a third partition, they may wait for each
    other, which no order of execution satisfies.

    Args:
        result: ExecuTorch's ``PartitionResult``; its tags change.
    """
    nodes = list(result.tagged_exported_program.graph.nodes)
    for cycle in _cycles(nodes):
        steps = _steps([n for n in nodes if _unit(n) in cycle])
        for node, step in steps.items():
            if DELEGATION_TAG in node.meta and step:
                tag = node.meta[DELEGATION_TAG]
                node.meta[DELEGATION_TAG] = f"{tag}_{step}"
                result.partition_tags[node.meta[DELEGATION_TAG]] = result.partition_tags[tag]
    used = {node.meta.get(DELEGATION_TAG) for node in nodes}
    for tag in set(result.partition_tags) - used:
        del result.partition_tags[tag]


def _unit(node: Node) -> str | Node:
    """Return what runs at once with a node: its partition, or itself."""
    tag: str | None = node.meta.get(DELEGATION_TAG)
    return tag or node


def _steps(nodes: Sequence[Node]) -> Mapping[Node, int]:
    """Number the parts of each partition such that none waits for one of a higher number.

    A node is one step behind the inputs that it gets from elsewhere. What waits for nothing, such
    as a dequantized and transposed weight, is moved back to what reads it, and so is what is
    dequantized: a layer is fused with those only.
    """
    steps: dict[Node, int] = {}
    free: set[Node] = set()
    for node in nodes:
        inputs = [i for i in node.all_input_nodes if i in steps]
        steps[node] = max((steps[i] + (_unit(i) != _unit(node)) for i in inputs), default=0)
        if all(i in free for i in inputs):
            free.add(node)
    for node in reversed(nodes):
        readers = [u for u in node.users if u in steps]
        if readers and (node in free or "dequantize" in str(node.target)):
            steps[node] = min(steps[u] - (_unit(u) != _unit(node)) for u in readers)
    return steps


def _cycles(nodes: Sequence[Node]) -> list[set[str | Node]]:
    """Return the groups of partitions and nodes that wait for each other."""
    import networkx

    units = [(_unit(node), _unit(user)) for node in nodes for user in node.users]
    graph = networkx.DiGraph((unit, user) for unit, user in units if unit != user)
    return [group for group in networkx.strongly_connected_components(graph) if len(group) > 1]
