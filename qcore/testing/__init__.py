"""Tests that every backend passes, for the authors of backends.

    from qcore.testing import BackendConformance, Requirements

    class TestConformance(BackendConformance):
        backend = "mybackend"
        requirements = Requirements(dynamic_shapes=False)

Needs pytest: ``pip install "qcore-quant[testing]"``. The names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcore.lowering.rounding import Rounding, run_disturbed, step_of
    from qcore.testing.conformance import BackendConformance
    from qcore.testing.models import ZOO, Fn, ZooModel
    from qcore.testing.requirements import Requirements
    from qcore.testing.subject import Subject

__all__ = [
    "ZOO",
    "BackendConformance",
    "Fn",
    "Requirements",
    "Rounding",
    "Subject",
    "ZooModel",
    "run_disturbed",
    "step_of",
]

_HOMES = {
    "BackendConformance": "qcore.testing.conformance",
    "Fn": "qcore.testing.models",
    "Requirements": "qcore.testing.requirements",
    "Rounding": "qcore.lowering.rounding",
    "Subject": "qcore.testing.subject",
    "ZOO": "qcore.testing.models",
    "ZooModel": "qcore.testing.models",
    "run_disturbed": "qcore.lowering.rounding",
    "step_of": "qcore.lowering.rounding",
}
# Their assertions explain themselves; plugin and models have none.
_WITH_ASSERTIONS = (
    "qcore.testing.comparison",
    "qcore.testing.conformance",
    "qcore.testing.subject",
    "qcore.testing.suite",
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qcore.testing' has no attribute {name!r}")
    import importlib

    if name in ("BackendConformance", "Subject"):
        try:
            import pytest
        except ImportError as error:
            raise ImportError(
                "qcore.testing needs pytest, which is not installed: "
                'pip install "qcore-quant[testing]".'
            ) from error
        pytest.register_assert_rewrite(*_WITH_ASSERTIONS)
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
