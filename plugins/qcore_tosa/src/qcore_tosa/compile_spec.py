"""ExecuTorch's compile specs, from what users pass for one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qcore.errors import QcoreError
from qcore_executorch import import_executorch

__all__ = ["as_compile_spec", "check_compile_spec", "tosa_specification"]


def check_compile_spec(
    backend: str, spec: Any, expected: type, advice: str, options: Iterable[object] = ()
) -> None:
    """Refuse a compile spec of another backend, or one beside the options to build one.

    Args:
        backend: The backend's name.
        spec: What the user passed.
        expected: ExecuTorch's class of that backend's compile specs.
        advice: What to pass.
        options: The values of the options; those that were not given are false.

    Raises:
        QcoreError: It is of another class, or an option was given, too.
    """
    if not isinstance(spec, expected):
        raise QcoreError(
            f"{backend} takes ExecuTorch's {expected.__name__}, got {type(spec).__name__} "
            f"({spec!r}). {advice}"
        )
    if any(options):
        raise QcoreError(
            f"Pass {backend} either a compile_spec or the options to build one, not both."
        )


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
        return module.TosaCompileSpec(tosa_specification(spec))
    raise QcoreError(
        f"Expected one of ExecuTorch's Arm compile specs, got {type(spec).__name__} ({spec!r}). "
        "Pass VgfCompileSpec(), EthosUCompileSpec('ethos-u85-256') or 'TOSA-1.0+INT'."
    )


def tosa_specification(spec: Any) -> Any:
    """Return a TOSA specification.

    Args:
        spec: One, or its string, such as ``"TOSA-1.0+INT+int16"``.

    Returns:
        ExecuTorch's ``TosaSpecification``.

    Raises:
        QcoreError: The string is none.
    """
    if not isinstance(spec, str):
        return spec
    specification = import_executorch("executorch.backends.arm.tosa").TosaSpecification
    try:
        return specification.create_from_string(spec)
    except (ValueError, KeyError) as error:
        raise QcoreError(
            f"{spec!r} is no TOSA specification: {error}. "
            "Write the version, profiles and extensions, as in 'TOSA-1.0+FP+INT+int16'."
        ) from error
