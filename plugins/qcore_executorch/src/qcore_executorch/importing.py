"""Importing ExecuTorch, which takes seconds and prints what nobody can act on."""

from __future__ import annotations

import importlib
import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Final

from qcore.errors import RuntimeUnavailableError
from qcore.quiet import quiet, quieten

__all__ = ["INSTALL", "import_executorch"]

#: The command that installs a version that fits.
INSTALL: Final = "pip install qcore-executorch"

# What reads its table of operators and types, once.
_TABLE: Final = "executorch.exir.dialects.edge._ops"

quieten("executorch")


def import_executorch(module: str = "executorch.exir") -> ModuleType:
    """Import a part of ExecuTorch without its noise.

    Args:
        module: The module to import.

    Returns:
        The module.

    Raises:
        RuntimeUnavailableError: ExecuTorch is not installed, or that part of it does not import.
    """
    with quiet(), nullcontext() if _TABLE in sys.modules else _quick_yaml():
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"Lowering needs {module}, which does not import ({error}). Install ExecuTorch "
                f"with a version this release was built for: {INSTALL}."
            ) from error


def _quick_yaml() -> AbstractContextManager[None]:
    # Commands that import no ExecuTorch start without what changes libraries.
    from qcore_executorch.compat.ruamel import quick_yaml

    return quick_yaml()
