"""What is changed of ExecuTorch's lowering to Vulkan while a model is lowered."""

from __future__ import annotations

import copy
import functools
from contextlib import AbstractContextManager
from typing import Any, Final

from qcore.compat import Change, Requirement, Wording

__all__ = [
    "COPIES",
    "NODES",
    "OPERATORS",
    "PARTITIONER",
    "VALUES",
    "patterns_exported_once",
    "scalars_by_type",
]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.6")
PARTITIONER: Final = "executorch.backends.vulkan.partitioner.vulkan_partitioner"

#: Its class of supported operators, which can be given in no other way.
OPERATORS: Final = Change(
    *_EXECUTORCH,
    PARTITIONER,
    ["VulkanSupportedOperators"],
    why="it takes operators into a delegate that its serialization then stops at.",
)

#: The same class: what is overridden of it.
NODES: Final = Requirement(
    *_EXECUTORCH,
    f"{PARTITIONER}:VulkanSupportedOperators",
    ["is_node_supported", "log_skip"],
    why="it decides about each node, and says why, in these methods.",
)

#: The kinds of values in a graph.
VALUES: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.vulkan.serialization.vulkan_graph_schema",
    [
        "BoolList",
        "Bool",
        "Double",
        "DoubleList",
        "Int",
        "IntList",
        "Null",
        "String",
        "ValueList",
        "VkTensor",
    ],
    why="where a graph is verified, its values are known by these names.",
)

#: The pass that drops copies.
COPIES: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.vulkan._passes.remove_redundant_ops:RemoveRedundantOpsTransform",
    ["_should_remove", "_src_arg1_ops"],
    why="it also drops copies that change the order of a tensor in memory.",
)

_SCALARS: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.vulkan.serialization.vulkan_graph_builder:VkGraphBuilder",
    ["get_or_create_scalar_value"],
    why="it keeps one value of numbers that Python holds for equal: of 0 and 0.0 the first.",
)

_PATTERNS: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.vulkan.patterns",
    ["fusable_patterns"],
    why="it exports its patterns of rotary embeddings whenever it looks for them: two thirds of "
    "the time that a small model takes.",
)
_ENTRIES: Final = Wording(
    *_EXECUTORCH,
    "executorch.backends.vulkan.patterns.pattern_registry:PatternEntry",
    ["get_graphs_fn"],
    why="what exports the graphs of a pattern has this name.",
)


def scalars_by_type() -> AbstractContextManager[None]:
    """Give a Vulkan graph an integer and a float where a model has 0 and 0.0."""
    (theirs,) = _SCALARS.originals()

    def get_or_create(self: Any, scalar: Any) -> Any:
        known, key = self.const_scalar_to_value_ids, repr(scalar)
        if key not in known:
            self.const_scalar_to_value_ids = {}
            known[key] = theirs(self, scalar)
            self.const_scalar_to_value_ids = known
        return known[key]

    return _SCALARS.applied(get_or_create)


def patterns_exported_once() -> AbstractContextManager[None]:
    """Let what a graph is searched for be exported once in a process, as it is the same always."""
    (theirs,) = _PATTERNS.originals()
    _ENTRIES.checked()
    patterns = {name: copy.copy(entry) for name, entry in theirs.items()}
    for entry in patterns.values():
        if entry.get_graphs_fn is not None:
            entry.get_graphs_fn = functools.partial(_exported, entry.get_graphs_fn)
    return _PATTERNS.applied(patterns)


@functools.cache
def _exported(graphs: Any) -> Any:
    return graphs()
