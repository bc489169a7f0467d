"""The Vulkan backend of qcore: 8- and 4-bit linear layers on mobile GPUs through ExecuTorch.

``VulkanQuantizer`` and ``get_symmetric_quantization_config`` take the place of ExecuTorch's names,
``quantize_`` that of torchao's: a script written for those runs with the import line changed.
"""

from qcore_vulkan.backend import VulkanBackend
from qcore_vulkan.quantizer import (
    VulkanQuantizer,
    get_symmetric_quantization_config,
    quantize_,
)

__all__ = ["VulkanBackend", "VulkanQuantizer", "get_symmetric_quantization_config", "quantize_"]
