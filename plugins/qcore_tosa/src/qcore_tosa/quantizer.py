"""The quantizer under the name that ExecuTorch's users know."""

from __future__ import annotations

from typing import Any

from qcore.errors import QcoreError
from qcore.lowering import import_executorch
from qcore.quantizer import Quantizer
from qcore_tosa.backend import TosaBackend

__all__ = ["TosaQuantizer", "as_compile_spec"]


def as_compile_spec(spec: Any) -> Any:
    """Return a compile spec for what ExecuTorch's quantizers take.

    Args:
        spec: One of ExecuTorch's Arm compile specs, a ``TosaSpecification`` or its string, such as
            ``"TOSA-1.0+INT"``.

    Returns:
        An Arm compile spec.

    Raises:
        QcoreError: It is none of these.
    """
    common = import_executorch("executorch.backends.arm.common.arm_compile_spec")
    if isinstance(spec, common.ArmCompileSpec):
        return spec
    tosa = import_executorch("executorch.backends.arm.tosa")
    if isinstance(spec, (str, tosa.TosaSpecification)):
        module = import_executorch("executorch.backends.arm.tosa.compile_spec")
        return module.TosaCompileSpec(spec)
    raise QcoreError(
        f"Expected one of ExecuTorch's Arm compile specs, got {type(spec).__name__} ({spec!r}). "
        "Pass VgfCompileSpec(), EthosUCompileSpec('ethos-u85-256') or 'TOSA-1.0+INT'."
    )


class TosaQuantizer(Quantizer):
    """Quantizes for any of ExecuTorch's Arm targets.

    Args:
        compile_spec: An Arm compile spec, a ``TosaSpecification``, or its string.

    Raises:
        QcoreError: ``compile_spec`` is none of these.
    """

    def __init__(self, compile_spec: Any) -> None:
        super().__init__(TosaBackend(as_compile_spec(compile_spec)))

    @property
    def compile_spec(self) -> Any:
        """The compile spec of the target."""
        return self.backend.compile_spec  # type: ignore[attr-defined]

    @property
    def tosa_spec(self) -> Any:
        """The TOSA specification of the target."""
        return self.compile_spec.tosa_spec
