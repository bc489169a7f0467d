"""What is changed of ExecuTorch's VGF backend while a model is lowered."""

from __future__ import annotations

from typing import Final

from qcore.compat import Change

__all__ = ["COMPILER"]

#: The function that calls Arm's model converter.
COMPILER: Final = Change(
    __name__,
    "executorch",
    ">=1.4.1,<1.5",
    "executorch.backends.arm.vgf.backend",
    ["vgf_compile"],
    why="the TOSA graph and the VGF made of it are lost, or kept in files whose path is inside the "
    ".pte.",
)
