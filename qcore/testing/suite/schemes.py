"""Checks on what a backend declares: that it is data, and that it is the truth."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from attrs import evolve
from torch import nn

import qcore
from qcore.errors import QcoreError
from qcore.schemes import LayerScheme, QuantizationScheme
from qcore.source import SourceScheme
from qcore.testing.comparison import compared_outputs, expected_sqnr_db, sqnr_db
from qcore.testing.models import ZOO, Fn
from qcore.testing.subject import PROBES, Subject
from qcore.testing.suite.qspecs import check_converted, check_qspecs, integer_weights

__all__ = ["SchemeChecks"]

_SOURCE_NAMES = ("8da4w", "8da8w", "4w", "8w", "2w")
_ROWS = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
_IDS = torch.arange(12).reshape(2, 6)


def _possible() -> Iterator[QuantizationScheme]:
    for weight, activation, granularity, dynamic in itertools.product(
        (2, 4, 8), (None, 8, 16), ("per_channel", "per_tensor"), (False, True)
    ):
        if activation is not None or not dynamic:
            yield QuantizationScheme(weight, activation, granularity, dynamic)  # type: ignore[arg-type]


class SchemeChecks:
    """Each declared scheme is executed, each other one refused with what there is instead."""

    def test_schemes_are_hashable_and_unique(self, subject: Subject) -> None:
        seen: set[QuantizationScheme] = set()
        for scheme in (*subject.schemes, *subject.source_schemes):
            with subject.step(
                f"the hash of {scheme!r}", "Build schemes of numbers and strings only."
            ):
                again = scheme in seen
            assert not again, f"{subject.name}: {scheme} is declared twice; name it once."
            seen.add(scheme)

    def test_schemes_are_the_same_every_time(self, subject: Subject) -> None:
        first, second = subject.quantizer(), subject.quantizer()
        assert first.supported_schemes == second.supported_schemes, (
            f"{subject.name}: supported_schemes answers differently when asked again: return a "
            "constant, or what the options of the instance say."
        )

    def test_declared_scheme_is_executed(
        self, subject: Subject, scheme: QuantizationScheme
    ) -> None:
        with subject.step(f"the configuration of {scheme}", "Declare what a configuration says."):
            scheme.to_config()
        model = subject.probe(scheme)
        assert model is not None, (
            f"{subject.name} declares {scheme} and quantizes none of {', '.join(PROBES)} with it:\n"
            f"{subject.annotated(ZOO[PROBES[0]], scheme).report}\n"
            "Take the scheme out of supported_schemes, or annotate an operator with it."
        )
        check_qspecs(subject, subject.annotated(model, scheme), scheme)
        result = subject.quantize(model, scheme)
        check_converted(subject, result.model, scheme)
        weights = list(integer_weights(result.model))
        assert weights, (
            f"{subject.name} declares {scheme}, and {model.name} has no integer weight after "
            "convert_pt2e: annotate the weight's edge with the weight qspec of the configuration."
        )
        for name, used, limit in weights:
            # Scales that are powers of two leave half of the levels unused at most.
            assert used > 0.45 * limit, (
                f"{subject.name}: with {scheme}, the weight of {name} in {model.name} uses levels "
                f"up to {used} of {limit}: its scale is {limit / max(used, 1):.0f} times too large."
            )
        expected = model.module()(*model.samples[0])
        for before, after in compared_outputs(expected, result.model(*model.samples[0])):
            noise = sqnr_db(before, after)
            assert noise >= expected_sqnr_db(scheme), (
                f"{subject.name}: {model.name} quantized with {scheme} is {noise:.1f} dB from "
                f"float, expected at least {expected_sqnr_db(scheme):.0f} dB. A scale, a zero "
                "point or an axis is wrong."
            )
        subject.record("scheme", str(scheme), "converts")

    def test_undeclared_schemes_are_refused(self, subject: Subject) -> None:
        schemes = subject.schemes
        undeclared = [s for s in _possible() if not any(known.covers(s) for known in schemes)]
        if not undeclared:
            subject.not_asked("it declares every scheme")
        for scheme in undeclared:
            subject.expect_refusal(
                f"set_global({scheme})",
                lambda scheme=scheme: subject.quantizer().set_global(scheme),  # type: ignore[misc]
                subject.name,
            )

    def test_configurations_can_be_pickled(
        self, subject: Subject, scheme: QuantizationScheme
    ) -> None:
        with subject.step(f"pickling {scheme}"):
            assert pickle.loads(pickle.dumps(scheme)) == scheme
        with subject.step(f"pickling the configuration of {scheme}"):
            before = scheme.to_config()
            config = pickle.loads(pickle.dumps(before))
        told = QuantizationScheme.from_config(config)
        assert told == QuantizationScheme.from_config(before), (
            f"{subject.name}: the configuration of {scheme} is another scheme after pickling"
        )
        subject.selected(config)

    def test_declared_source_scheme_is_executed(
        self, subject: Subject, source_scheme: LayerScheme
    ) -> None:
        outcomes = subject.cached("source", lambda: _source_outcomes(subject))
        error = outcomes.get(source_scheme)
        if error is not None:
            raise error
        subject.record("source", str(source_scheme), subject.evidence)

    def test_undeclared_source_schemes_are_refused(self, subject: Subject) -> None:
        declared = {(s.layer, s.name) for s in subject.source_schemes}
        possible = {("linear", name) for name in _SOURCE_NAMES}
        possible |= {("embedding", name) for name in _SOURCE_NAMES if "a" not in name}
        if possible <= declared:
            subject.not_asked("it declares every scheme of quantize_")
        for kind, name in sorted(possible - declared):
            model, rules = nn.Sequential(_layer(kind)), {"0": name}
            subject.expect_refusal(
                f"quantize_ of {kind} layers with {name}",
                lambda model=model, rules=rules: qcore.quantize_(  # type: ignore[misc]
                    model, subject.quantizer(), rules=rules
                ),
                subject.name,
            )


def _layer(kind: str | None) -> nn.Module:
    return nn.Embedding(12, 64) if kind == "embedding" else nn.Linear(64, 64)


def _source_outcomes(subject: Subject) -> dict[LayerScheme, BaseException]:
    """Lower one model with a layer for each scheme; where that fails, one model for each."""
    schemes = subject.source_schemes
    try:
        return _try_source(subject, schemes)
    except (AssertionError, QcoreError):
        outcomes: dict[LayerScheme, BaseException] = {}
        for scheme in schemes:
            try:
                outcomes.update(_try_source(subject, (scheme,)))
            except (AssertionError, QcoreError) as error:
                outcomes[scheme] = error
        return outcomes


def _try_source(
    subject: Subject, schemes: tuple[LayerScheme, ...]
) -> dict[LayerScheme, BaseException]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {f"layer{i}": _layer(scheme.layer) for i, scheme in enumerate(schemes)}

    def forward(m: nn.Module, rows: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Both inputs are read, whatever the layers are.
        return (
            *(
                getattr(m, name)(ids if scheme.layer == "embedding" else rows)
                for name, scheme in zip(layers, schemes, strict=True)
            ),
            rows * 1.0,
            ids + 1,
        )

    model = Fn(forward, **layers).eval()
    inputs = (_ROWS, _IDS)
    in_float = model(*inputs)
    what = f"a model with {', '.join(map(str, schemes))}"
    with subject.step(f"quantize_ of {what}", "Declare what quantize_ can ask for."):
        rules: Any = {name: _source(scheme) for name, scheme in zip(layers, schemes, strict=True)}
        qcore.quantize_(model, subject.quantizer(), rules=rules)
    quantized = model(*inputs)
    outputs = None
    if subject.requirements.lowers:
        with subject.step(f"lower of {what}"):
            program = subject.quantizer().lower(model, inputs, **subject.requirements.lower_options)
        outputs = subject.run(program, inputs, what)
    outcomes: dict[LayerScheme, BaseException] = {}
    for index, scheme in enumerate(schemes):
        noise = sqnr_db(in_float[index], quantized[index])
        if noise < expected_sqnr_db(evolve(scheme, activation_bits=None)):
            outcomes[scheme] = AssertionError(
                f"{subject.name}: {scheme} by quantize_ is {noise:.1f} dB from float"
            )
        if outputs is not None:
            noise = sqnr_db(quantized[index], outputs[index])
            if noise < subject.requirements.program_sqnr_db:
                outcomes[scheme] = AssertionError(
                    f"{subject.name}: the program of a layer with {scheme} is {noise:.1f} dB from "
                    "the quantized model. lower changes what is computed."
                )
    return outcomes


def _source(scheme: LayerScheme) -> SourceScheme:
    if scheme.granularity == "per_group":
        return SourceScheme(scheme.name, max(32, scheme.group_multiple))
    return SourceScheme(scheme.name, "axis")
