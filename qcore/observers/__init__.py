"""Calibration statistics."""

from qcore.observers.histogram import HistogramObserver

__all__ = ["HistogramObserver"]
