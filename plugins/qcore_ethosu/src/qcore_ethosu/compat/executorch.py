"""What is changed of ExecuTorch's Ethos-U backend while a model is lowered."""

from __future__ import annotations

from typing import Final

from qcore.compat import Change

__all__ = ["COMPILER", "VELA"]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.6")

#: The function that calls Vela and packs what it made.
COMPILER: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.arm.ethosu.backend",
    ["vela_compile"],
    why="the TOSA graph, the command stream and Vela's figures are lost, or kept in files whose "
    "path is inside the .pte.",
)

#: Vela, where that function looks for it.
VELA: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.arm.arm_vela",
    ["vela"],
    why="Vela prints to the standard output of the process that it is called in, and its compiler "
    "is native code.",
)
