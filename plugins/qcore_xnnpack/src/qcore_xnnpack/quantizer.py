"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from qcore.quantizer import Quantizer
from qcore_xnnpack.backend import XnnpackBackend

__all__ = ["XNNPACKQuantizer"]


class XNNPACKQuantizer(Quantizer):
    """``qcore.get_quantizer("xnnpack")`` as a class."""

    def __init__(self) -> None:
        super().__init__(XnnpackBackend(), name="xnnpack")
