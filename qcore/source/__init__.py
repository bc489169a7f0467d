"""Source quantization: the weights of linear layers and embeddings, before the model is captured.

What torchao's ``quantize_`` does, with a backend in view: what it cannot execute is an error before
the first weight changes.
"""

from __future__ import annotations

from qcore.source.api import quantize_
from qcore.source.drop_in import torchao_quantize_
from qcore.source.scheme import SourceScheme

__all__ = ["SourceScheme", "quantize_", "torchao_quantize_"]
