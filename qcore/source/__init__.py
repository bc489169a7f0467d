"""Source quantization: the weights of linear layers and embeddings, before the model is captured.

What torchao's ``quantize_`` does, with a backend in view: what it cannot execute is an error before
the first weight changes.
"""

from __future__ import annotations

from qcore.source.api import quantize_, torchao_quantize_
from qcore.source.modules import is_quantized
from qcore.source.scheme import SourceScheme
from qcore.source.weights import quantized_weight

__all__ = [
    "SourceScheme",
    "is_quantized",
    "quantize_",
    "quantized_weight",
    "torchao_quantize_",
]
