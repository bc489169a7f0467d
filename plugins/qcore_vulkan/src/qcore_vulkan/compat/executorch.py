"""What is changed of ExecuTorch's Vulkan partitioner while a model is partitioned."""

from __future__ import annotations

from typing import Final

from qcore.compat import Change

__all__ = ["OPERATORS", "PARTITIONER"]

PARTITIONER: Final = "executorch.backends.vulkan.partitioner.vulkan_partitioner"

#: Its class of supported operators, which can be given in no other way.
OPERATORS: Final = Change(
    __name__,
    "executorch",
    ">=1.4.1,<1.5",
    PARTITIONER,
    ["VulkanSupportedOperators"],
    why="it takes operators into a delegate that its serialization then stops at.",
)
