"""The VGF backend of qcore: Arm's ML extensions for Vulkan, through ExecuTorch.

``VgfQuantizer`` and the configurations take the place of ExecuTorch's names: a script
written for those runs with the import line changed.
"""

from typing import Any

from qcore_tosa import (
    get_symmetric_a16w8_quantization_config,
    get_symmetric_quantization_config,
    get_uint8_io_quantization_config,
)
from qcore_vgf.backend import VgfBackend
from qcore_vgf.quantizer import VgfQuantizer

__all__ = [
    "VgfBackend",
    "VgfCompileSpec",
    "VgfQuantizer",
    "get_symmetric_a16w8_quantization_config",
    "get_symmetric_quantization_config",
    "get_uint8_io_quantization_config",
]


def __getattr__(name: str) -> Any:
    # ExecuTorch's classes: importing them takes seconds.
    if name == "VgfCompileSpec":
        from qcore_executorch import import_executorch

        return import_executorch("executorch.backends.arm.vgf").VgfCompileSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
