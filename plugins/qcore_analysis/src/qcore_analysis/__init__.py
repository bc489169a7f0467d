"""What stands around the quantizing of a model: commands, recipes, comparisons, a doctor.

The names below load on first use: the commands answer ``--help`` without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcore_analysis.backends import BackendReport, compare_backends
    from qcore_analysis.recipe import Recipe
    from qcore_analysis.stage_report import StageReport
    from qcore_analysis.stages import compare_stages

__all__ = ["BackendReport", "Recipe", "StageReport", "compare_backends", "compare_stages"]

_HOMES = {
    "BackendReport": "qcore_analysis.backends",
    "compare_backends": "qcore_analysis.backends",
    "Recipe": "qcore_analysis.recipe",
    "StageReport": "qcore_analysis.stage_report",
    "compare_stages": "qcore_analysis.stages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
