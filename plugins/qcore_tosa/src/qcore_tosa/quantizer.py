"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from typing import Any, ClassVar

from qcore.quantizer import Quantizer
from qcore_tosa.backend import TosaBackend

__all__ = ["TosaQuantizer"]


class TosaQuantizer(Quantizer):
    """Quantizes for any of ExecuTorch's Arm targets.

    Args:
        compile_spec: An Arm compile spec; a ``TosaSpecification`` or its string stand for TOSA
            itself, which the reference model executes.

    Raises:
        QcoreError: ``compile_spec`` is none of these.
    """

    #: The backend; a device's quantizer names its own.
    backend_type: ClassVar[type[TosaBackend]] = TosaBackend

    def __init__(self, compile_spec: Any) -> None:
        super().__init__(self.backend_type(compile_spec))

    @property
    def compile_spec(self) -> Any:
        """The compile spec of the target."""
        return self.backend.compile_spec  # type: ignore[attr-defined]

    @property
    def tosa_spec(self) -> Any:
        """The TOSA specification of the target."""
        return self.compile_spec.tosa_spec
