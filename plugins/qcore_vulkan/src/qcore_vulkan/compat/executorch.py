"""What is changed of ExecuTorch's Vulkan partitioner while a model is partitioned."""

from __future__ import annotations

from typing import Final

from qcore.compat import Change, Requirement

__all__ = ["COPIES", "NODES", "OPERATORS", "PARTITIONER", "VALUES"]

_VERSIONS: Final = ">=1.4.1,<1.6"
PARTITIONER: Final = "executorch.backends.vulkan.partitioner.vulkan_partitioner"

#: Its class of supported operators, which can be given in no other way.
OPERATORS: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    PARTITIONER,
    ["VulkanSupportedOperators"],
    why="it takes operators into a delegate that its serialization then stops at.",
)

#: The same class: what is overridden of it.
NODES: Final = Requirement(
    __name__,
    "executorch",
    _VERSIONS,
    f"{PARTITIONER}:VulkanSupportedOperators",
    ["is_node_supported", "log_skip"],
    why="it decides about each node, and says why, in these methods.",
)

#: The kinds of values in a graph.
VALUES: Final = Requirement(
    __name__,
    "executorch",
    _VERSIONS,
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
    __name__,
    "executorch",
    _VERSIONS,
    "executorch.backends.vulkan._passes.remove_redundant_ops:RemoveRedundantOpsTransform",
    ["_should_remove", "_src_arg1_ops"],
    why="it also drops copies that change the order of a tensor in memory.",
)
