"""Calibration: the samples, and a file for each method that chooses ranges from them."""

from __future__ import annotations

from qcore.calibration.histogram import HistogramObserver
from qcore.calibration.inspection import Inspection, Kept
from qcore.calibration.methods import CalibrationMethod, calibration_method, with_method
from qcore.calibration.samples import (
    CalibrationData,
    calibrate,
    check_arguments,
    check_device,
    check_sample,
)

__all__ = [
    "CalibrationData",
    "CalibrationMethod",
    "HistogramObserver",
    "Inspection",
    "Kept",
    "calibrate",
    "calibration_method",
    "check_arguments",
    "check_device",
    "check_sample",
    "with_method",
]
