"""What is changed of torch while a model is lowered, all of it for speed: no result differs."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from qcore.compat import Change
from qcore.compat.torch import CODE_GENERATORS

__all__ = [
    "deferred_code",
    "quick_decompositions",
    "shared_provenance",
    "unrecorded_sizes",
    "unrecorded_stacks",
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
_STACKS: Final = Change(
    *_TORCH,
    "torch.fx.proxy",
    ["CapturedTraceback"],
    why="an operator without the stack of its model gets the stack of the compiler, as text.",
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


class _NoStack:
    """Stands for a stack that nobody reads."""

    @staticmethod
    def extract() -> type[_NoStack]:
        return _NoStack

    @staticmethod
    def summary() -> None:
        return None


def unrecorded_stacks() -> AbstractContextManager[None]:
    """Let operators that are recorded without the stack of their model have none."""
    return _STACKS.applied(_NoStack)


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
