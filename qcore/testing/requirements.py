"""What a backend says about itself, so that the suite asks of it what it can do and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, fields, frozen

from qcore import registry
from qcore.errors import BackendLoadError, QcoreError
from qcore.formats import NumberFormat

__all__ = ["Requirements"]


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(options)


def _formats(value: Any) -> dict[str, Sequence[NumberFormat]]:
    if isinstance(value, Mapping):
        return dict(value)
    raise BackendLoadError(
        f"changes_ranges is {value!r}: it says what changes, as a mapping from an operator to the "
        'formats of its values, such as {"aten.tanh.default": (qcore.formats.INT16,)}.'
    )


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
        run_options: Options of ``run`` for random models, such as those of an executor that is
            faster than the one which the suite asks.
        delegates: Whether the backend's compiler takes quantized operators: the report lists them
            as delegated. If not, they are computed in float, between quantize and dequantize
            nodes, and listed as undelegated.
        runs: Whether ``program.run`` executes programs where the suite runs. If not, it raises
            ``RuntimeUnavailableError`` that says where they run.
        verifies: Whether programs have ``verify(*inputs)``, which returns a report with ``ok``.
        dynamic_shapes: Whether sizes of inputs may vary. If not, some step raises a
            ``QcoreError`` that says so.
        changes_ranges: The formats that values have beside those of the configuration, by the
            operator whose input or output they are, such as ``{"aten.tanh.default": (INT16,)}``
            for a table of 16 bits. All other values are compared with the configuration.
        lowers_operators: Whether all models that a scheme quantizes are lowered, and executed. A
            backend whose compiler takes minutes for that leaves it to tests of its own.
        runs_saved: Whether a program that was saved and loaded runs, too. If not, running it raises
            ``RuntimeUnavailableError``.
        wide_ranges: Whether a fused clamp is computed where the range of its output goes beyond
            it, as an observer of the user's may choose. If not, programs are made with ranges that
            fit, which hide a clamp that was dropped.
        leaves_out_models: The reason by the name of a model that the suite does not lower, which
            certificates show. Its own checks of it are the backend's affair.
        leaves_out_schemes: The same by the name of a scheme, such as ``"8da8w"``, for which the
            suite lowers no models side by side.
        program_sqnr_db: How close a program of ``qcore.quantize_`` must come to the quantized
            model, in dB. Kernels round differently from the float arithmetic of the model.
    """

    options: Mapping[str, Any] = field(factory=dict, converter=_copied)
    partial: bool = True
    lowers: bool = True
    lower_options: Mapping[str, Any] = field(factory=dict, converter=_copied)
    run_options: Mapping[str, Any] = field(factory=dict, converter=_copied)
    delegates: bool = True
    runs: bool = True
    verifies: bool = False
    dynamic_shapes: bool = True
    changes_ranges: Mapping[str, Sequence[NumberFormat]] = field(factory=dict, converter=_formats)
    lowers_operators: bool = True
    runs_saved: bool = True
    wide_ranges: bool = True
    leaves_out_models: Mapping[str, str] = field(factory=dict, converter=_copied)
    leaves_out_schemes: Mapping[str, str] = field(factory=dict, converter=_copied)
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
