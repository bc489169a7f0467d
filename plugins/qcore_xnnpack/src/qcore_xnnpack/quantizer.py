"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qcore.quantizer import Quantizer
from qcore.report import SourceReport
from qcore.source import torchao_quantize_
from qcore_xnnpack.backend import XnnpackBackend

__all__ = ["XNNPACKQuantizer", "quantize_"]


class XNNPACKQuantizer(Quantizer):
    """``qcore.get_quantizer("xnnpack")`` as a class."""

    def __init__(self) -> None:
        super().__init__(XnnpackBackend(), name="xnnpack")


def quantize_(
    model: nn.Module, config: Any, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> SourceReport:
    """Quantize weights in place with the parameters of torchao's ``quantize_``.

    Args:
        model: The float model.
        config: One of torchao's configurations, for what XNNPACK executes.
        filter_fn: From a module and its name to whether it is quantized; ``None`` selects every
            linear layer.

    Returns:
        What became of every layer.

    Raises:
        QcoreError: The backend does not execute it; nothing has changed then.
    """
    return torchao_quantize_(model, config, filter_fn, backend="xnnpack")
