"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from typing import Any

from qcore_tosa import TosaQuantizer
from qcore_vgf.backend import VgfBackend

__all__ = ["VgfQuantizer"]


class VgfQuantizer(TosaQuantizer):
    """``qcore.get_quantizer("vgf")`` as a class.

    Args:
        compile_spec: ExecuTorch's ``VgfCompileSpec``; by default the one for int8 and float.

    Raises:
        QcoreError: ``compile_spec`` is none.
    """

    backend_type = VgfBackend

    def __init__(self, compile_spec: Any = None) -> None:
        super().__init__(compile_spec)
