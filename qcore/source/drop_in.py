"""``quantize_`` with the parameters that torchao's function has, for the plugins to offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qcore.report import SourceReport
from qcore.source.api import quantize_

__all__ = ["torchao_quantize_"]


def torchao_quantize_(
    model: nn.Module,
    config: Any,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    *,
    backend: str,
) -> SourceReport:
    """Quantize in place what torchao's ``quantize_`` would, as far as a backend executes it.

    Args:
        model: The float model.
        config: ``IntxWeightOnlyConfig`` or ``Int8DynamicActivationIntxWeightConfig`` of torchao.
        filter_fn: From a module and its name to whether it is quantized: linear layers and
            embeddings. ``None`` selects every linear layer.
        backend: The backend's name.

    Returns:
        What became of every layer.

    Raises:
        QcoreError: As :func:`qcore.quantize_` raises it.
    """
    if filter_fn is None:
        return quantize_(model, backend, config)
    selected = [m for name, m in model.named_modules() if filter_fn(m, name)]
    rules: dict[Any, Any] = {
        kind: config
        for kind in (nn.Linear, nn.Embedding)
        if any(isinstance(module, kind) for module in selected)
    }
    return quantize_(model, backend, None if rules else config, rules=rules, filter_fn=filter_fn)
