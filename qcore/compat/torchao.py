"""What qcore changes of torchao, all of it for speed: no result differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from qcore.compat.patching import Change

__all__ = ["fusions_of_present_convolutions"]

_FUSIONS: Final = Change(
    __name__,
    "torchao",
    ">=0.18,<0.19",
    "torchao.quantization.pt2e.qat_utils",
    ["_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper"],
    why="for quantization-aware training it exports some 100 patterns in convert_pt2e, a quarter "
    "of them for each of four kinds of convolution, which takes most of the time for all but large "
    "models.",
)


def fusions_of_present_convolutions() -> AbstractContextManager[None]:
    """Fuse batch norms only into the kinds of convolution that a model has."""
    import torch

    def where_present(fuse: Callable[..., Any]) -> Callable[..., Any]:
        def fused(model: Any, kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
            wanted = getattr(torch.ops.aten, kind.__name__)
            targets = (getattr(n.target, "overloadpacket", None) for n in model.graph.nodes)
            present = any(target == wanted for target in targets)
            return fuse(model, kind, *args, **options) if present else model

        return fused

    return _FUSIONS.applied(*map(where_present, _FUSIONS.originals()))
