"""What can be wrong with ExecuTorch's runtime, for ``qcore doctor``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from qcore_executorch.importing import import_executorch
from qcore_executorch.kernels import QUANTIZED_KERNELS, RUNTIME

__all__ = ["REINSTALL", "check", "delegate_is_registered", "imports"]

#: The command that installs ExecuTorch again.
REINSTALL = "pip install --force-reinstall --no-deps executorch"


def check() -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the kernels of the runtime, and the command that mends it."""
    runtime: Any = import_executorch(RUNTIME)
    import_executorch(QUANTIZED_KERNELS)
    names = runtime._get_operator_names()
    if "aten::add.out" not in names:
        yield "the runtime registers no portable kernels", REINSTALL
    if "quantized_decomposed::quantize_per_tensor.out" not in names:
        yield f"{QUANTIZED_KERNELS} registers no kernels", REINSTALL


def imports(module: str, what: str, fix: str) -> Iterator[tuple[str, str]]:
    """Yield a problem where a module does not import.

    Args:
        module: Its name.
        what: What it is, for the message.
        fix: The command that installs it.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        yield f"{what} does not import: {error}", fix


def delegate_is_registered(name: str, fix: str = REINSTALL) -> Iterator[tuple[str, str]]:
    """Yield a problem where the runtime here cannot execute a delegate.

    Args:
        name: The delegate, as the runtime names it.
        fix: The command that installs a runtime that can.
    """
    runtime: Any = import_executorch(RUNTIME)
    names = list(runtime._get_registered_backend_names())
    if name not in names:
        yield f"the runtime has no {name}, only {', '.join(names) or 'none at all'}", fix
