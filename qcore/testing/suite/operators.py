"""Checks on single operators; what they find is the table of operators on support pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.schemes import QuantizationScheme
from qcore.testing.comparison import compared_outputs, sqnr_db
from qcore.testing.models import Fn, ZooModel
from qcore.testing.operators import OPERATORS
from qcore.testing.subject import ConformanceFailure, Subject
from qcore.testing.suite.annotation import check_every_node, check_reasons, check_truth

__all__ = ["OperatorChecks"]

# Two operators in series, each of which may round another way.
_TWO_ROUNDINGS_DB = 10.0


class OperatorChecks:
    """What is said of an operator is what becomes of it, down to the program."""

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

    def test_quantized_operators_are_executed(self, subject: Subject) -> None:
        subject.needs("lowers")
        subject.needs("lowers_operators")
        scheme = subject.main_scheme
        chosen = {
            f"part{index}": model
            for index, model in enumerate(OPERATORS.values())
            if not subject.annotated(model, scheme).report.in_float
        }
        assert chosen, f"{subject.name} quantizes no operator with {scheme}"
        try:
            _check_programs(subject, chosen, scheme)
        except ConformanceFailure as failure:
            culprit = _culprit(subject, chosen, scheme)
            raise ConformanceFailure(f"{failure}\nAn operator at fault: {culprit}") from failure
        subject.record("program", "operators", subject.evidence)


def _check_programs(
    subject: Subject, chosen: dict[str, ZooModel], scheme: QuantizationScheme
) -> None:
    """Check one program with all of some models in it, which takes less than one for each."""
    what = ", ".join(model.name.removeprefix("the operator ") for model in chosen.values())
    inputs = tuple(model.samples[0][0] for model in chosen.values())
    with subject.step(f"qcore.quantize of {what}"):
        result = qcore.quantize(
            _together(chosen), subject.selected(scheme), [inputs], bias_correction=False
        )
    with subject.step(f"lower of {what}"):
        program = subject.quantizer().lower(
            result.model, inputs, **subject.requirements.lower_options
        )
    if subject.requirements.delegates:
        outside = [
            f"{chosen[part].name} ({node.operator}: {node.reason})"
            for node in program.report.undelegated
            if (part := node.module.partition(".")[0]) in chosen
        ]
        assert not outside, (
            f"{subject.name}: quantized, and in no delegate of the program: "
            f"{'; '.join(outside)}. Take their rows out of the table, or mend the lowering."
        )
    outputs = subject.run(program, inputs, what)
    if outputs is None:
        return
    least = subject.requirements.program_sqnr_db - _TWO_ROUNDINGS_DB
    pairs = compared_outputs(result.model(*inputs), outputs)
    wrong = [
        f"{model.name}: {noise:.1f} dB"
        for model, (before, after) in zip(chosen.values(), pairs, strict=True)
        if (noise := sqnr_db(before, after)) < least
    ]
    assert not wrong, (
        f"{subject.name}: the program differs from the converted model by more than "
        f"{least:.0f} dB in {'; '.join(wrong)}"
    )


def _culprit(subject: Subject, chosen: dict[str, ZooModel], scheme: QuantizationScheme) -> str:
    """Halve the models until one is left that fails, since lowering each alone may take long."""
    suspects = list(chosen)
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        try:
            _check_programs(subject, {part: chosen[part] for part in half}, scheme)
        except AssertionError:
            suspects = half
        else:
            suspects = suspects[len(half) :]
    model = chosen[suspects[0]]
    try:
        _check_programs(subject, {suspects[0]: model}, scheme)
    except AssertionError as failure:
        return f"{model.name}, alone: {str(failure).splitlines()[0]}"
    return f"{model.name}, together with others"


def _is_quantized(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> bool:
    report = subject.annotated(model, scheme).report
    return bool(report.decisions) and report.decisions[-1].is_quantized


def _together(models: dict[str, ZooModel]) -> nn.Module:
    def forward(m: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(m, part)(x) for part, x in zip(models, inputs, strict=True))

    return Fn(forward, **{part: model.module() for part, model in models.items()}).eval()
