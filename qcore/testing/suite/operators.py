"""Checks on single operators; what they find is the table of operators on support pages."""

from __future__ import annotations

import pytest

from qcore.schemes import QuantizationScheme
from qcore.testing.models import ZooModel
from qcore.testing.operators import OPERATORS
from qcore.testing.subject import Subject
from qcore.testing.suite.annotation import check_every_node, check_reasons, check_truth

__all__ = ["OperatorChecks"]


class OperatorChecks:
    """What is said of an operator is what becomes of it."""

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_decision_on_an_operator(self, subject: Subject, operator: str) -> None:
        model, quantizing = OPERATORS[operator], []
        for scheme in subject.executed_schemes:
            check_every_node(subject, model, scheme)
            check_reasons(subject, model, scheme)
            check_truth(subject, model, scheme)
            if _is_quantized(subject, model, scheme):
                quantizing.append(scheme.name)
        subject.record("operator", operator, ", ".join(dict.fromkeys(quantizing)))


def _is_quantized(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> bool:
    report = subject.annotated(model, scheme).report
    return bool(report.decisions) and report.decisions[-1].is_quantized
