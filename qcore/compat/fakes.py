"""What torchao's operators give for tensors without values, said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

# torchao defines its operators when it is imported.
from qcore.compat import torchao as _torchao  # noqa: F401
from qcore.compat.patching import Change

__all__ = ["quick_fakes"]

_TORCH: Final = (__name__, "torch", ">=2.13,<2.14")

_CALLS: Final = Change(
    *_TORCH,
    "torch._ops:OpOverload",
    ["__call__"],
    why="torchao's operators find sizes and types by fifteen others: where sizes are symbols, a "
    "third of the lowering of a language model.",
)
_DISPATCHES: Final = Change(
    *_TORCH,
    "torch._subclasses.fake_tensor:FakeTensorMode",
    ["dispatch"],
    why="so they do where those are asked first who record operators or make them functional.",
)


@contextmanager
def quick_fakes() -> Iterator[None]:
    """Let torchao's operators on tensors without values say their results' sizes and types at once.

    Yields:
        Nothing.
    """
    from torch._C import _TorchDispatchModeKey as Mode
    from torch._subclasses.fake_tensor import FakeTensor

    (original,), (dispatch,) = _CALLS.originals(), _DISPATCHES.originals()
    known, before = _results(), torch._ops._get_dispatch_mode_pre_dispatch
    watching = (Mode.PROXY, Mode.FUNCTIONAL)

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        result = known.get(self)
        if result is None or type(args[0]) is not FakeTensor:
            return original(self, *args, **kwargs)
        # Whoever records operators or makes them functional is to see them.
        fake = torch._C._get_dispatch_mode(Mode.FAKE) is not None
        if torch._C._len_torch_dispatch_stack() > fake or any(map(before, watching)):
            return original(self, *args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return original(self, *args, **kwargs)
        found = result(*args, **kwargs)
        return original(self, *args, **kwargs) if found is None else found

    def dispatched(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, found = known.get(func), None
        if result is not None and type(args[0]) is FakeTensor:
            with self:
                found = result(*args, **(kwargs or {}))
        if found is None:
            return dispatch(self, func, types, args, kwargs or {})
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            # As it would by the operators that it stands for.
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            found.requires_grad_(any(each.requires_grad for each in tensors))
        return found

    with _CALLS.applied(call), _DISPATCHES.applied(dispatched):
        yield


def _results() -> dict[Any, Callable[..., Any]]:
    """Return functions from the arguments of torchao's operators to results without values.

    They return None where they do not know.
    """

    def quantized(x: Any, block: Any, scale: Any, zero: Any, dtype: Any, *_: Any, **__: Any) -> Any:
        return x.new_empty(x.shape, dtype=dtype) if x.is_contiguous() else None

    def dequantized(
        x: Any,
        block: Any,
        scale: Any,
        zero: Any,
        dtype: Any,
        low: Any = None,
        high: Any = None,
        output_dtype: Any = torch.float32,
    ) -> Any:
        return x.new_empty(x.shape, dtype=output_dtype) if x.is_contiguous() else None

    def chosen(
        x: Any,
        mapping: str,
        block: Any,
        dtype: Any,
        low: Any = None,
        high: Any = None,
        eps: Any = None,
        scale_dtype: Any = None,
        zero_dtype: Any = None,
        keepdim: bool = False,
    ) -> Any:
        *rows, row = block
        if mapping != "ASYMMETRIC" or keepdim or any(size != 1 for size in rows):
            return None
        if row is not x.shape[-1] and not (isinstance(row, int) and row == x.shape[-1]):
            return None
        sizes = x.shape[:-1]
        return (
            x.new_empty(sizes, dtype=scale_dtype or x.dtype),
            x.new_empty(sizes, dtype=zero_dtype or torch.int32),
        )

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        return x.new_empty((*x.shape[:-1], weight.shape[0])) if x.is_contiguous() else None

    names = torch.ops.torchao
    return {
        torch.ops.aten.linear.default: linear,
        names.quantize_affine.default: quantized,
        names.dequantize_affine.default: dequantized,
        names.choose_qparams_affine.default: chosen,
    }
