"""The XNNPACK backend of qcore: int8 on Arm and x86 CPUs through ExecuTorch.

``XNNPACKQuantizer`` and ``get_symmetric_quantization_config`` take the place of ExecuTorch's names,
``quantize_`` that of torchao's: a script written for those runs with the import line changed.
"""

from qcore.schemes import get_symmetric_quantization_config
from qcore_xnnpack.backend import XnnpackBackend
from qcore_xnnpack.quantizer import XNNPACKQuantizer, quantize_

__all__ = ["XNNPACKQuantizer", "XnnpackBackend", "get_symmetric_quantization_config", "quantize_"]
