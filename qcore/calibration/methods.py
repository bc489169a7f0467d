"""Calibration methods: what chooses the ranges of static activations from the samples.

The core applies the method of a quantizer to the configurations that its rules resolve to, so that
every backend honours it. An observer that a user put into a configuration is never replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final, Protocol, runtime_checkable

from qcore.calibration.histogram import Histogram
from qcore.calibration.min_max import MinMax
from qcore.compat.torchao import QuantizationConfig, QuantizationSpec, maker_of
from qcore.formats import FormatObserver, NumberFormat
from qcore.names import look_up

__all__ = ["DEFAULT", "METHODS", "CalibrationMethod", "calibration_method", "with_method"]


@runtime_checkable
class CalibrationMethod(Protocol):
    """Chooses ranges; hashable, so that one configuration stays one configuration."""

    @property
    def name(self) -> str:
        """Its name, as in ``set_calibration("histogram")``."""

    def observer(self, number_format: NumberFormat) -> Any:
        """Return the class, or torchao's constructor, of an observer for a format.

        Args:
            number_format: The format of the activations: its levels, their type.

        Returns:
            What builds observers with torchao's arguments: ``dtype``, ``qscheme``, ``quant_min``,
            ``quant_max`` and ``eps``.
        """


DEFAULT: Final = Histogram()

#: The methods that have a name.
METHODS: Final[dict[str, CalibrationMethod]] = {m.name: m for m in (DEFAULT, MinMax())}


def calibration_method(wanted: str | CalibrationMethod) -> CalibrationMethod:
    """Return the method that a user asked for: by name, or one of the user's own."""
    own = "One of your own is an object with a name and observer(number_format)."
    return look_up(wanted, METHODS, CalibrationMethod, "calibration method", own)


def with_method(method: CalibrationMethod, config: QuantizationConfig) -> QuantizationConfig:
    """Put a method's observers in the place of those that a method chose."""
    return dataclasses.replace(
        config,
        input_activation=_chosen(config.input_activation, method),
        output_activation=_chosen(config.output_activation, method),
    )


def _chosen(spec: Any, method: CalibrationMethod) -> Any:
    maker = maker_of(spec)
    if not isinstance(maker, FormatObserver) or not maker.is_chosen:
        return spec
    return _rebuilt(spec, method)  # type: ignore[arg-type]


@functools.cache
def _rebuilt(spec: QuantizationSpec, method: CalibrationMethod) -> QuantizationSpec:
    number_format = NumberFormat.of(spec)
    assert number_format is not None
    maker = FormatObserver(method.observer(number_format), number_format, is_chosen=True)
    return dataclasses.replace(spec, observer_or_fake_quant_ctr=maker)
