"""What the Arm backends of qcore share: operators, schemes, decompositions, lowering, reference."""

from qcore_tosa.backend import TosaBackend
from qcore_tosa.compile_spec import check_compile_spec, tosa_specification
from qcore_tosa.quantizer import TosaQuantizer
from qcore_tosa.schemes import (
    get_symmetric_a8w4_quantization_config,
    get_symmetric_a16w8_quantization_config,
    get_symmetric_quantization_config,
    get_uint8_io_quantization_config,
)

__all__ = [
    "TosaBackend",
    "TosaQuantizer",
    "check_compile_spec",
    "get_symmetric_a8w4_quantization_config",
    "get_symmetric_a16w8_quantization_config",
    "get_symmetric_quantization_config",
    "get_uint8_io_quantization_config",
    "tosa_specification",
]
