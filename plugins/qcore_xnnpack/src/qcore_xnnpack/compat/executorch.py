"""What is overridden of ExecuTorch's XNNPACK partitioner."""

from __future__ import annotations

from typing import Final

from qcore.compat import Requirement

__all__ = ["SOFTMAX"]

#: Its rules for softmax.
SOFTMAX: Final = Requirement(
    __name__,
    "executorch",
    ">=1.4.1,<1.6",
    "executorch.backends.xnnpack.partition.config:SoftmaxConfig",
    ["check_constraints"],
    why="it delegates the softmax of images beside convolutions, which XNNPACK computes over the "
    "channels.",
)
