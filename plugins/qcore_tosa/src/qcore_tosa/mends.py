"""Mends of ExecuTorch's passes, for as long as a model is lowered."""

from __future__ import annotations

from contextlib import AbstractContextManager

from qcore.lowering import import_executorch
from qcore.patching import patched

__all__ = ["mended_passes"]


def mended_passes() -> AbstractContextManager[None]:
    """Let convolutions of 16-bit activations give 16 bits, as those of 8-bit activations give 8.

    ExecuTorch 1.4 leaves the result as int32 if a reader rescales it to int32, as an addition does
    (``backends/arm/_passes/rewrite_conv_pass.py``). A convolution that reads it, too, as before a
    residual connection, then stops the lowering with "Unsupported input dtype torch.int32"; and
    without the saturation to 16 bits the addition overflows, which the reference model refuses as
    unpredictable.

    Returns:
        A context in which they do.
    """
    module = import_executorch("executorch.backends.arm._passes.rewrite_conv_pass")
    return patched(module.RewriteConvPass, _has_int32_rescale_user=lambda self, node: False)
