"""What is changed of torch while a model is lowered, all of it for speed: no result differs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from qcore.compat import Change

__all__ = ["quick_decompositions", "shared_provenance"]

_VERSIONS: Final = ">=2.13,<2.14"

_SHARED_PROVENANCE: Final = Change(
    __name__,
    "torch",
    _VERSIONS,
    "torch.fx.traceback:NodeSource",
    ["__deepcopy__"],
    why="every pass of a compiler wraps the record of where a node came from in a new one and "
    "copies all that is inside; with a hundred passes that is a tenth of the lowering.",
    adds=True,
)
_LISTINGS: Final = Change(
    __name__,
    "torch",
    _VERSIONS,
    "torch._export.utils",
    ["_materialize_cpp_cia_ops", "_collect_all_valid_cia_ops_for_namespace"],
    why="it lists all operators again for each decomposition of a graph, however small.",
)
_KERNELS: Final = Change(
    __name__,
    "torch",
    _VERSIONS,
    "torch._ops:OperatorBase",
    ["py_impl"],
    why="it reads the type hints of some hundred kernels for each decomposition of a graph.",
)


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
