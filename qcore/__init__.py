"""Quantize PyTorch models for edge backends, each of them a plugin.

The names below load on first use: importing qcore, or listing backends, imports no torch. Other
distributions give more of them, by entry points of the group ``qcore.names``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qcore.errors import QcoreError, QcoreWarning
from qcore.registry import BackendInfo, backends, entry_points, register_backend

if TYPE_CHECKING:
    from qcore.configs import get_symmetric_quantization_config
    from qcore.flow import QuantizedModel, explain, load_quantized, quantize
    from qcore.hookspecs import API_VERSION, hookimpl
    from qcore.lowering import LoweredProgram
    from qcore.quantizer import Quantizer, get_quantizer
    from qcore.report import AnnotationReport, SourceReport
    from qcore.schemes import QuantizationConfig, QuantizationScheme
    from qcore.source import SourceScheme, quantize_

__all__ = [
    "API_VERSION",
    "AnnotationReport",
    "BackendInfo",
    "LoweredProgram",
    "QcoreError",
    "QcoreWarning",
    "QuantizationConfig",
    "QuantizationScheme",
    "QuantizedModel",
    "Quantizer",
    "SourceReport",
    "SourceScheme",
    "backends",
    "explain",
    "get_quantizer",
    "get_symmetric_quantization_config",
    "hookimpl",
    "load_quantized",
    "quantize",
    "quantize_",
    "register_backend",
]

_HOMES = {
    "API_VERSION": "qcore.hookspecs",
    "AnnotationReport": "qcore.report",
    "LoweredProgram": "qcore.lowering",
    "QuantizationConfig": "qcore.schemes",
    "QuantizationScheme": "qcore.schemes",
    "QuantizedModel": "qcore.flow",
    "Quantizer": "qcore.quantizer",
    "SourceReport": "qcore.report",
    "SourceScheme": "qcore.source",
    "explain": "qcore.flow",
    "get_quantizer": "qcore.quantizer",
    "get_symmetric_quantization_config": "qcore.configs",
    "hookimpl": "qcore.hookspecs",
    "load_quantized": "qcore.flow",
    "quantize": "qcore.flow",
    "quantize_": "qcore.source",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        # Interpreters and tools ask for many names that begin so, which nobody gives.
        given = () if name.startswith("_") else entry_points("qcore.names")
        point = next((point for point in given if point.name == name), None)
        if point is None:
            raise AttributeError(f"module 'qcore' has no attribute {name!r}")
        value = point.load()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
