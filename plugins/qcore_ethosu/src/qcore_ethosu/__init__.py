"""The Ethos-U backend of qcore: Arm's NPUs, through ExecuTorch and Vela.

``EthosUQuantizer`` and the configurations take the place of ExecuTorch's names: a script
written for those runs with the import line changed.
"""

from typing import Any

from qcore_ethosu.backend import EthosUBackend
from qcore_ethosu.quantizer import EthosUQuantizer
from qcore_tosa import (
    get_symmetric_a16w8_quantization_config,
    get_symmetric_quantization_config,
    get_uint8_io_quantization_config,
)

__all__ = [
    "EthosUBackend",
    "EthosUCompileSpec",
    "EthosUQuantizer",
    "get_symmetric_a16w8_quantization_config",
    "get_symmetric_quantization_config",
    "get_uint8_io_quantization_config",
]


def __getattr__(name: str) -> Any:
    # ExecuTorch's classes: importing them takes seconds.
    if name == "EthosUCompileSpec":
        from qcore_executorch import import_executorch

        return import_executorch("executorch.backends.arm.ethosu").EthosUCompileSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
