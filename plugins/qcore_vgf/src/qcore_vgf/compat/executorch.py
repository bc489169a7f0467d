"""What is changed of ExecuTorch's VGF backend while a model is lowered."""

from __future__ import annotations

from typing import Final

from qcore.compat import Change
from qcore.errors import RuntimeUnavailableError

__all__ = ["COMPILER", "CONVERTER", "require_runtime"]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.5")
_BACKEND: Final = "executorch.backends.arm.vgf.backend"

#: The function that calls Arm's model converter.
COMPILER: Final = Change(
    *_EXECUTORCH,
    _BACKEND,
    ["vgf_compile"],
    why="the TOSA graph and the VGF made of it are lost, or kept in files whose path is inside the "
    ".pte.",
)

#: The function that looks for the converter.
CONVERTER: Final = Change(
    *_EXECUTORCH,
    _BACKEND,
    ["require_model_converter_executable"],
    why="it looks on the PATH, where an environment that is not activated has no scripts, and in a "
    "variable of the process, which other threads see.",
)


def require_runtime() -> None:
    """Refuse versions of ExecuTorch whose package cannot run VGF programs.

    Raises:
        RuntimeUnavailableError: The installed one is such a version.
    """
    if not COMPILER.supported:
        raise RuntimeUnavailableError(
            f"vgf: the package of ExecuTorch {COMPILER.installed} has no runtime for VGF programs, "
            "so none could be checked or run here. Install one that has: "
            f"pip install 'executorch[vgf]{COMPILER.versions}'."
        )
