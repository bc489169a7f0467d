"""What is changed of torch while a model is lowered, all of it for speed: no result differs."""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

from qcore.compat import Change
from qcore.compat.torch import CODE_GENERATORS

__all__ = [
    "deferred_code",
    "quick_decompositions",
    "quick_fakes",
    "shared_provenance",
    "unrecorded_sizes",
]

_TORCH: Final = (__name__, "torch", ">=2.13,<2.14")

_SHARED_PROVENANCE: Final = Change(
    *_TORCH,
    "torch.fx.traceback:NodeSource",
    ["__deepcopy__"],
    why="every pass of a compiler wraps the record of where a node came from in a new one and "
    "copies all that is inside; with a hundred passes that is a tenth of the lowering.",
    adds=True,
)
_LISTINGS: Final = Change(
    *_TORCH,
    "torch._export.utils",
    ["_materialize_cpp_cia_ops", "_collect_all_valid_cia_ops_for_namespace"],
    why="it lists all operators again for each decomposition of a graph, however small.",
)
_KERNELS: Final = Change(
    *_TORCH,
    "torch._ops:OperatorBase",
    ["py_impl"],
    why="it reads the type hints of some hundred kernels for each decomposition of a graph.",
)
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
_WRAPPING: Final = Change(
    *_TORCH,
    "torch._subclasses.functional_tensor:FunctionalTensor",
    ["__new__"],
    why="a graph that is made functional records how the sizes of each tensor make up its number "
    "of elements, and removes it: where sizes are symbols, a tenth of the lowering.",
)
_CODE: Final = Change(
    *_TORCH,
    "torch.fx:GraphModule",
    ["recompile"],
    why="it generates and compiles the code of a graph whenever one is made or changed, also where "
    "the next of a hundred passes reads the graph alone.",
)


@contextmanager
def deferred_code() -> Iterator[None]:
    """Let graph modules generate their code when somebody asks for it.

    Yields:
        Nothing.
    """
    (recompile,) = _CODE.originals()
    CODE_GENERATORS.checked()

    class Deferred:
        """An attribute of a module that is made when somebody asks for it."""

        def __init__(self, module: Any, name: str) -> None:
            self._module, self._name = weakref.ref(module), name

        def __get__(self, module: Any, owner: Any) -> Any:
            recompile(self._module())
            return getattr(owner if module is None else module, self._name)

    def defer(self: Any) -> None:
        self.__dict__.pop("_code", None)
        for name in ("forward", "_code"):
            setattr(type(self), name, Deferred(self, name))
        structure = getattr(self.graph._codegen, "pytree_info", None)
        if structure is not None:
            self._in_spec, self._out_spec = structure.in_spec, structure.out_spec

    with _CODE.applied(defer):
        yield


def shared_provenance() -> AbstractContextManager[None]:
    """Let copies of a node share the record of where it came from, which nothing changes."""
    return _SHARED_PROVENANCE.applied(lambda self, memo: self)


@contextmanager
def quick_decompositions() -> Iterator[None]:
    """Let torch list its operators once, and register their kernels without reading type hints.

    A lowering decomposes several times: a quarter of the time that a small model takes.

    Yields:
        Nothing.
    """
    from torch._C import DispatchKey

    (py_impl,) = _KERNELS.originals()

    def register(self: Any, key: Any) -> Any:
        if not isinstance(key, DispatchKey) or key is DispatchKey.Python or key in self.py_kernels:
            return py_impl(self, key)

        def keep(kernel: Any) -> Any:
            self.py_kernels[key] = kernel
            self._dispatch_cache.clear()
            return kernel

        return keep

    cached = map(functools.cache, _LISTINGS.originals())
    with _LISTINGS.applied(*cached), _KERNELS.applied(register):
        yield


@contextmanager
def unrecorded_sizes() -> Iterator[None]:
    """Let a tensor that is made functional look at its sizes without recording that.

    Yields:
        Nothing.
    """
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    (make,) = _WRAPPING.originals()

    def unrecorded(*args: Any) -> Any:
        with disable_proxy_modes_tracing():
            return make(*args)

    with _WRAPPING.applied(unrecorded):
        yield


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
    importlib.import_module("torchao.quantization.quant_primitives")

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
