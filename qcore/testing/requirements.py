"""What a backend says about itself, so that the suite asks of it what it can do and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, fields, frozen

from qcore import registry
from qcore.errors import BackendLoadError, QcoreError

__all__ = ["Requirements"]


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(options)


@frozen(kw_only=True)
class Requirements:
    """Capabilities of a backend, each with the value that most backends have as its default.

    A flag that says no is checked as well: the backend must then refuse, with a reason.

    Attributes:
        options: Options of the backend's class, as for ``qcore.get_quantizer(name, **options)``.
        partial: Whether parts of a model may stay in float. If not, ``validate_partial`` returns
            an error for every node that would.
        lowers: Whether ``lower`` works where the suite runs. If not, it raises a ``QcoreError``
            that says what is missing.
        lower_options: Options of ``lower`` that the suite passes.
        delegates: Whether the backend's compiler takes quantized operators: the report lists them
            as delegated. If not, they are computed in float, between quantize and dequantize
            nodes, and listed as undelegated.
        runs: Whether ``program.run`` executes programs where the suite runs. If not, it raises
            ``RuntimeUnavailableError`` that says where they run.
        verifies: Whether programs have ``verify(*inputs)``, which returns a report with ``ok``.
        dynamic_shapes: Whether sizes of inputs may vary. If not, some step raises a
            ``QcoreError`` that says so.
        changes_ranges: Whether the backend quantizes some values in other types than the
            configuration says, such as tables of 16 bits.
        lowers_operators: Whether all quantized operators are lowered together, and executed. A
            backend whose compiler takes minutes for that leaves it to tests of its own.
        program_sqnr_db: How close a program must come to the converted model, in dB. Integer
            kernels round differently from the float arithmetic of the converted model.
    """

    options: Mapping[str, Any] = field(factory=dict, converter=_copied)
    partial: bool = True
    lowers: bool = True
    lower_options: Mapping[str, Any] = field(factory=dict, converter=_copied)
    delegates: bool = True
    runs: bool = True
    verifies: bool = False
    dynamic_shapes: bool = True
    changes_ranges: bool = False
    lowers_operators: bool = True
    program_sqnr_db: float = 30.0

    @classmethod
    def declared_by(cls, backend: str) -> Requirements:
        """Read the requirements that a backend's class states in ``conformance``.

        Args:
            backend: The backend's name.

        Returns:
            Them, or the defaults where it states none or does not load.
        """
        try:
            stated = getattr(registry.backends()[backend].load(), "conformance", {})
        except (KeyError, QcoreError):
            return cls()
        unknown = sorted(set(stated) - {attribute.name for attribute in fields(cls)})
        if unknown:
            raise BackendLoadError(
                f"Backend {backend!r} states {', '.join(unknown)} in conformance, which are no "
                f"requirements. There are: {', '.join(a.name for a in fields(cls))}."
            )
        return cls(**stated)
