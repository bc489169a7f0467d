"""Checks on programs: what is in them, what their reports say, and what they compute."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

import torch

import qcore
from qcore.annotation.layers import layer_of
from qcore.errors import RuntimeUnavailableError
from qcore.lowering import LoweredProgram, artifact_of
from qcore.report import NodeRecord, StrayNode
from qcore.testing.comparison import compared_outputs, sqnr_db
from qcore.testing.models import ZOO, ZooModel
from qcore.testing.subject import Subject, fresh_graph

__all__ = ["LoweringChecks"]

# What a layer may be called in a lowered graph.
_LAYER = re.compile(r"linear|addmm|\bmm\b|convolution|conv\dd", re.IGNORECASE)


class LoweringChecks:
    """``lower`` gives a program that computes what the converted model does, and says how."""

    def _lowered(self, subject: Subject) -> tuple[ZooModel, LoweredProgram]:
        subject.needs("lowers")
        scheme = subject.main_scheme
        model = subject.probe(scheme)
        assert model is not None, f"{subject.name} quantizes nothing with {scheme}"
        return model, subject.lower(model, scheme)

    def test_lower_says_what_is_missing(self, subject: Subject) -> None:
        subject.needs("lowers", False)
        scheme = subject.main_scheme
        model = subject.probe(scheme) or ZOO["linear"]
        converted = subject.quantize(model, scheme).model
        subject.expect_refusal(
            "lower, which the requirements say does not work here",
            lambda: subject.quantizer().lower(
                converted, model.samples[0], **subject.requirements.lower_options
            ),
        )

    def test_lower_returns_a_program_with_a_report(self, subject: Subject) -> None:
        _, program = self._lowered(subject)
        advice = "Return the bytes of an artifact that the entry-point group 'qcore.artifacts' has."
        with subject.step("reading the program's buffer", advice):
            artifact_of(program.buffer, f"program{program.suffix}")
        report = program.report
        assert (program.backend, report.backend) == (subject.name, subject.name), (
            f"{subject.name}: the program says it is for {program.backend!r}, its report for "
            f"{report.backend!r}"
        )
        assert report.complete and report.program_bytes == len(program.buffer), (
            f"{subject.name}: the report says {report.program_bytes} bytes, complete="
            f"{report.complete}; the program has {len(program.buffer)} bytes"
        )

    def test_a_saved_program_is_read_back(self, subject: Subject) -> None:
        model, program = self._lowered(subject)
        with (
            tempfile.TemporaryDirectory() as folder,
            subject.step(
                "saving and loading a program",
                "Name its format in the entry-point group 'qcore.artifacts'.",
            ),
        ):
            read = LoweredProgram.load(program.save(Path(folder) / f"model{program.suffix}"))
        assert read.buffer == program.buffer
        assert read.suffix == program.suffix, (
            f"{subject.name}: programs have the suffix {program.suffix!r}, and their format says "
            f"{read.suffix!r}"
        )
        if not subject.requirements.runs:
            return
        inputs = model.samples[0]
        if not subject.requirements.runs_saved:
            subject.expect_refusal(
                "running a program that was saved and loaded",
                lambda: read.run(*inputs),
                error=RuntimeUnavailableError,
            )
            return
        with subject.step("running a program that was saved and loaded"):
            pairs = compared_outputs(program.run(*inputs), read.run(*inputs))
        assert all(torch.equal(before, after) for before, after in pairs), (
            f"{subject.name}: a program that was saved and loaded computes other values"
        )

    def test_the_report_names_what_is_not_delegated(self, subject: Subject) -> None:
        model, program = self._lowered(subject)
        told = _told(program)
        for operator, count in _operators_of(program).items():
            assert told.get(operator, 0) >= count, (
                f"{subject.name}: the program of {model.name} calls {operator} {count} times "
                f"outside any delegate, and the report names {told.get(operator, 0)} of them. List "
                "quantize and dequantize nodes under stray, others under undelegated."
            )

    def test_every_node_is_reported_once(self, subject: Subject) -> None:
        model, program = self._lowered(subject)
        report = program.report
        nodes = (*report.delegated, *report.undelegated)
        named = Counter([*(node.name for node in nodes), *(node.name for node in report.stray)])
        twice = [name for name, count in named.items() if count > 1]
        assert not twice, f"{subject.name}: the report names {', '.join(twice)} more than once"
        computed = [
            n for n in (*report.delegated, *report.undelegated) if _LAYER.search(n.operator)
        ]
        converted = subject.quantize(model, subject.main_scheme).model
        layers = sum(layer_of(node) is not None for node in converted.graph.nodes)
        assert len(computed) == layers, (
            f"{subject.name}: {model.name} has {layers} layers, and the report names "
            f"{len(computed)}: {', '.join(map(str, computed)) or 'none'}. List each compute node "
            "of the program once, under delegated or undelegated."
        )

    def test_quantized_operators_are_delegated(self, subject: Subject) -> None:
        model, program = self._lowered(subject)
        report = program.report
        if subject.requirements.delegates:
            assert report.delegates and report.delegated, (
                f"{subject.name}: nothing of {model.name} is in a delegate, and the requirements "
                f"say delegates=True. Of it stay outside: {report.undelegated_ops}"
            )
            assert not report.undelegated, (
                f"{subject.name}: quantized operators of {model.name} are in no delegate:\n{report}"
            )
        else:
            assert not report.delegates, (
                f"{subject.name}: {model.name} has {report.delegates} delegates, and the "
                "requirements say delegates=False"
            )

    def test_a_program_that_does_not_run_here_says_so(self, subject: Subject) -> None:
        subject.needs("runs", False)
        model, program = self._lowered(subject)
        message = subject.expect_refusal(
            "program.run, which the requirements say does not work here",
            lambda: program.run(*model.samples[0]),
            error=RuntimeUnavailableError,
        )
        assert message.strip(), f"{subject.name}: the error of program.run has no message"

    def test_lower_gives_the_same_program_every_time(self, subject: Subject) -> None:
        model, program = self._lowered(subject)
        again = subject.lower_again(model, subject.main_scheme)
        assert again.report == program.report, (
            f"{subject.name}: lowering {model.name} a second time gives another report"
        )
        pairs = zip(again.buffer, program.buffer, strict=False)
        first = next((place for place, (a, b) in enumerate(pairs) if a != b), len(program.buffer))
        assert again.buffer == program.buffer, (
            f"{subject.name}: lowering {model.name} a second time gives another program, from byte "
            f"{first} on. Write no time, address or random name into it, and no order of a set."
        )

    def test_lower_keeps_the_model(self, subject: Subject) -> None:
        model, _ = self._lowered(subject)
        scheme = subject.main_scheme
        converted = subject.quantize(model, scheme).model
        fresh = Subject(subject.name, subject.requirements).quantize(model, scheme).model
        inputs = model.samples[0]
        for before, after in compared_outputs(fresh(*inputs), converted(*inputs)):
            assert torch.equal(before, after), (
                f"{subject.name}: lower changes the converted model of {model.name} that it was "
                "given. Work on a copy."
            )

    def test_lower_refuses_unknown_options(self, subject: Subject) -> None:
        subject.needs("lowers")
        scheme = subject.main_scheme
        model = subject.probe(scheme) or ZOO["linear"]
        converted = subject.quantize(model, scheme).model
        options = {**subject.requirements.lower_options, "no_such_option": 1}
        subject.expect_refusal(
            "an unknown option of lower",
            lambda: subject.quantizer().lower(converted, model.samples[0], **options),
            "no_such_option",
        )

    def test_lower_refuses_a_float_model(self, subject: Subject) -> None:
        subject.needs("lowers")
        linear = ZOO["linear"]
        subject.expect_refusal(
            "lowering a model that is not quantized",
            lambda: subject.quantizer().lower(linear.module(), linear.samples[0]),
        )

    def test_a_program_refuses_inputs_that_do_not_fit(self, subject: Subject) -> None:
        subject.needs("runs")
        _, program = self._lowered(subject)
        subject.expect_refusal(
            "running a program on an input of another shape",
            lambda: program.run(torch.zeros(3, 5, 7)),
        )

    def test_sizes_that_vary(self, subject: Subject) -> None:
        zoo = ZOO["dynamic_batch"]

        def lower() -> LoweredProgram:
            scheme = subject.main_scheme
            result = qcore.quantize(fresh_graph(zoo), subject.selected(scheme), zoo.samples)
            return subject.quantizer().lower(
                result.model, zoo.samples[0], **subject.requirements.lower_options
            )

        if not subject.requirements.dynamic_shapes:
            subject.expect_refusal("a model with sizes that vary", lower)
            return
        subject.needs("lowers")
        with subject.step("quantizing and lowering a model with sizes that vary"):
            program = lower()
        expected = zoo.module()(*zoo.other_sizes)
        output = subject.run(program, zoo.other_sizes, "dynamic_batch, in another size")
        if output is None:
            return
        for before, after in compared_outputs(expected, output):
            assert sqnr_db(before, after) >= 15, (
                f"{subject.name}: in another size than it was captured with, dynamic_batch is "
                f"{sqnr_db(before, after):.1f} dB from float"
            )

    def test_a_model_partly_in_float_lowers(self, subject: Subject) -> None:
        subject.needs("lowers")
        subject.needs("partial")
        zoo = ZOO["attention"]
        quantizer = subject.selected(subject.main_scheme).set_module_name("value", None)
        with subject.step("qcore.quantize of attention, one layer in float"):
            result = qcore.quantize(fresh_graph(zoo), quantizer, zoo.samples)
        with subject.step("lower of attention, one layer in float"):
            program = quantizer.lower(
                result.model, zoo.samples[0], **subject.requirements.lower_options
            )
        told = _told(program)
        missing = {o: c for o, c in _operators_of(program).items() if told.get(o, 0) < c}
        assert not missing, (
            f"{subject.name}: outside any delegate, the program of attention calls {missing}, and "
            f"its report names {dict(told)}"
        )
        output = subject.run(program, zoo.samples[0], "attention, one layer in float")
        if output is None:
            return
        for before, after in compared_outputs(zoo.module()(*zoo.samples[0]), output):
            assert sqnr_db(before, after) >= 15, (
                f"{subject.name}: attention with one layer in float is "
                f"{sqnr_db(before, after):.1f} dB from the float model"
            )


def _told(program: LoweredProgram) -> Counter[str]:
    report = program.report
    nodes: tuple[NodeRecord | StrayNode, ...] = (*report.undelegated, *report.stray)
    return Counter(node.operator.rpartition(".")[0] for node in nodes)


def _operators_of(program: LoweredProgram) -> Counter[str]:
    """Read the calls outside delegates off the program itself, as ``aten.add``."""
    return artifact_of(program.buffer, f"program{program.suffix}").operators(program.buffer)
