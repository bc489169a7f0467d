"""What is changed of ExecuTorch while a model is lowered: what its loggers say, and its speed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from qcore.compat import Change

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = ["at_level", "quick_merging"]

_VERSIONS: Final = ">=1.4.1,<1.6"
_GROUPS: Final = "executorch.exir.backend.canonical_partitioners.group_partitioner"

_DEPENDENCIES: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    _GROUPS,
    ["_DependencyViewer"],
    why="it keeps a set of nodes for each node: gigabytes for a language model.",
)
_MERGING: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_GROUPS}:GroupBasedPartitioner",
    ["_can_merge_partitions"],
    why="it walks the graph behind both partitions, for each pair of partitions.",
)


@contextmanager
def at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Set the level of one of ExecuTorch's loggers while the context lasts.

    One thread lowers at a time, so none puts back what another has set.

    Args:
        logger: The logger.
        level: From which level on it speaks.

    Yields:
        Nothing.
    """
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quick_merging() -> Iterator[None]:
    """Let a partitioner find by sets of bits which partitions may be one; it finds the same.

    Yields:
        Nothing.
    """

    def can_merge(self: Any, first: int, second: int, partitions: dict[int, Any]) -> bool:
        reach = self.dependency_viewer
        pairs = zip(reach.of(first, partitions), reach.of(second, partitions), strict=True)
        inside, below, above = (one | other for one, other in pairs)
        return not below & above & ~inside

    with _DEPENDENCIES.applied(_Reach), _MERGING.applied(can_merge):
        yield


class _Reach:
    """The nodes of partitions, those that they lead to, and those that lead to them, as bits."""

    def __init__(self, root: GraphModule) -> None:
        nodes = list(root.graph.nodes)
        self._inside: dict[Node, int] = {n: 1 << i for i, n in enumerate(nodes)}
        self._below: dict[Node, int] = {}
        self._above: dict[Node, int] = {}
        for node in reversed(nodes):
            self._below[node] = self._united(node.users, self._inside, self._below)
        for node in nodes:
            self._above[node] = self._united(node.all_input_nodes, self._inside, self._above)
        self._known: dict[int, tuple[int, tuple[int, int, int]]] = {}

    def of(self, partition: int, partitions: dict[int, Any]) -> tuple[int, int, int]:
        """Return the nodes in, below and above a partition, which only ever grows."""
        nodes = partitions[partition].nodes
        count, (inside, below, above) = self._known.get(partition, (0, (0, 0, 0)))
        if count != len(nodes):
            added = list(islice(nodes, count, None))
            inside |= self._united(added, self._inside)
            below |= self._united(added, self._below)
            above |= self._united(added, self._above)
            self._known[partition] = len(nodes), (inside, below, above)
        return inside, below, above

    @staticmethod
    def _united(nodes: Iterable[Node], *sets: dict[Node, int]) -> int:
        united = 0
        for node in nodes:
            for bits in sets:
                united |= bits[node]
        return united
