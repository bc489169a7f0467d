"""Mends of ExecuTorch's passes, for as long as a model is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

from qcore.graph import operator_name
from qcore.lowering import import_executorch
from qcore.patching import patched
from qcore_tosa.marks import is_argmax

__all__ = ["mended_passes"]

_IN_METADATA: Final = ("float_alpha", "float_scale", "float_input_scale", "output_qparams")


@contextmanager
def mended_passes() -> Iterator[None]:
    """Lower with ExecuTorch's passes as they are meant.

    Yields:
        Nothing.
    """
    with _saturated_convolutions(), _fused_if_alike(), _delegated_argmax():
        yield


def _saturated_convolutions() -> AbstractContextManager[None]:
    """Let convolutions of 16-bit activations give 16 bits, as those of 8-bit activations give 8.

    ExecuTorch 1.4 leaves the result as int32 if a reader rescales it to int32, as an addition does
    (``backends/arm/_passes/rewrite_conv_pass.py``). A convolution that reads it, too, as before a
    residual connection, then stops the lowering with "Unsupported input dtype torch.int32"; and
    without the saturation to 16 bits the addition overflows, which the reference model refuses as
    unpredictable.
    """
    module = import_executorch("executorch.backends.arm._passes.rewrite_conv_pass")
    return patched(module.RewriteConvPass, _has_int32_rescale_user=lambda self, node: False)


def _fused_if_alike() -> AbstractContextManager[None]:
    """Let duplicates be fused only if they compute the same, and not if they leave the delegate.

    ExecuTorch 1.4 compares arguments, while the parameters of ELU and its relatives, and the ranges
    of results, are in the metadata by then (``backends/arm/_passes/convert_elu_params.py`` and
    ``fuse_duplicate_users_pass.py``). And of two outputs that are one value, the runtime of VGF
    writes one.
    """
    module = import_executorch("executorch.backends.arm._passes.fuse_duplicate_users_pass")
    pass_ = module.FuseDuplicateUsersPass
    signature = pass_._build_user_signature

    def complete(self: Any, node: Any) -> Any:
        found = signature(self, node)
        if found is None or any(user.op == "output" for user in node.users):
            return None
        return (*found, *(repr(node.meta.get(key)) for key in _IN_METADATA))

    return patched(pass_, _build_user_signature=complete)


def _delegated_argmax() -> AbstractContextManager[None]:
    """Let a delegate hold the position of the largest value, with the cast of it to int32.

    TOSA's positions are int32. ExecuTorch 1.4 inserts the cast and then leaves it outside of the
    delegate, which so promises an int64 that it does not give; and without float it takes no
    argmax, for it looks at the float32 between dequantizing and argmax
    (``backends/arm/operator_support/tosa_supported_operators.py``).
    """
    where = "executorch.backends.arm.operator_support.tosa_supported_operators"
    check = import_executorch(where).CheckInt64InputsAndOutputs
    inputs, dtype = check._check_int64_input_nodes, check._is_tosa_argmax_dtype_supported

    def inputs_fit(self: Any, node: Any) -> bool:
        if node.kwargs.get("dtype") is torch.int32 and is_argmax(node.args[0]):
            return bool(self._is_tosa_argmax_supported(node.args[0]))
        return bool(inputs(self, node))

    def dtype_fits(self: Any, node: Any, given: Any) -> bool:
        quantized = "dequantize_per_tensor" in operator_name(node.args[0])
        integer = quantized and self.tosa_spec.support_integer()
        return bool(integer or dtype(self, node, given))

    return patched(
        check, _check_int64_input_nodes=inputs_fit, _is_tosa_argmax_dtype_supported=dtype_fits
    )
