"""Checks that execute what a backend claims: models side by side in one program, value by value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_structure

from qcore.errors import near_misses
from qcore.lowering import LoweredProgram
from qcore.lowering.rounding import Rounding
from qcore.schemes import QuantizationScheme
from qcore.testing.models import ZOO, ZooModel
from qcore.testing.operators import OPERATORS
from qcore.testing.packs import Pack
from qcore.testing.subject import ConformanceFailure, Subject, without_qat
from qcore.testing.variants import VARIANTS

__all__ = ["ProgramChecks", "check_programs"]

# Models in one program: fewer start more compilers, and more take some of them too long.
_TOGETHER = 24

_EVERY = {**OPERATORS, **ZOO, **VARIANTS}

# What is executed of every scheme.
_FEW = (
    "linear",
    "conv_bn_relu",
    "conv2d, grouped, stride 2 by 1",
    "outputs in a dict",
    "dropout in evaluation",
)


class ProgramChecks:
    """What is quantized computes the same in a program, whatever the inputs and the order."""

    def test_what_is_left_out_is_known_and_says_why(self, subject: Subject) -> None:
        stated = subject.requirements
        if not stated.leaves_out_models and not stated.leaves_out_schemes:
            subject.not_asked("it leaves out nothing")
        schemes = {scheme.name for scheme in subject.schemes}
        for flag, known in (("leaves_out_models", _EVERY), ("leaves_out_schemes", schemes)):
            for name, reason in getattr(stated, flag).items():
                assert name in known, (
                    f"{subject.name}: {flag} names {name!r}, and there is none. Did you mean "
                    f"{', '.join(near_misses(name, known)) or 'another'}?"
                )
                assert reason.strip(), f"{subject.name}: {flag} gives no reason for {name!r}"

    def test_program_of_a_declared_scheme(
        self, subject: Subject, scheme: QuantizationScheme
    ) -> None:
        _needs_programs(subject, scheme)
        for pack in packed(subject, scheme, _FEW):
            check_programs(subject, pack, scheme)
        subject.record("program of a scheme", str(scheme), subject.evidence)

    def test_every_quantized_model_is_executed(
        self, subject: Subject, scheme: QuantizationScheme
    ) -> None:
        _needs_programs(subject, scheme)
        subject.needs("lowers_operators")
        first = next(s for s in subject.schemes if s.name == scheme.name)
        if first != scheme:
            subject.not_asked(f"they are executed with {first}")
        packs = packed(subject, scheme, _EVERY)
        for pack in packs:
            check_programs(subject, pack, scheme)
        for name in (name for pack in packs for name in pack.models):
            subject.record(f"executed with {scheme.name}", name, subject.evidence)
        for name, reason in subject.requirements.leaves_out_models.items():
            subject.record("left out", name, reason)
        if scheme == subject.main_scheme:
            subject.record("program", "operators", subject.evidence)
        if not (subject.requirements.runs or subject.requirements.verifies):
            subject.not_asked("it states runs=False; the programs were made, and nothing more")

    def test_results_do_not_depend_on_earlier_runs(self, subject: Subject) -> None:
        pack, scheme = _small(subject)
        program = subject.lower_pack(pack, scheme)[1]
        inputs = pack.inputs_by_kind()
        order = [*inputs, *reversed(inputs), *list(inputs)[::2]]
        with subject.step("a session of a program"), program.session() as run:
            results = [(kind, run(*inputs[kind])) for kind in order]
        with subject.step("run_many of a program"):
            alone = dict(zip(inputs, program.run_many(inputs.values()), strict=True))
        for place, (kind, found) in enumerate(results):
            same = all(map(torch.equal, tree_leaves(alone[kind]), tree_leaves(found)))
            assert same, (
                f"{subject.name}: run {place + 1} of a session, on inputs {kind}, gives other "
                f"values than the same inputs after others. Let a runner keep nothing from one "
                "run to the next."
            )
        distinct = {str(tree_leaves(output)) for output in alone.values()}
        assert len(distinct) > 1, (
            f"{subject.name}: a program returns the same for all of {len(inputs)} inputs"
        )

    def test_a_program_can_be_timed(self, subject: Subject) -> None:
        pack, scheme = _small(subject)
        program = subject.lower_pack(pack, scheme)[1]
        with subject.step("benchmark of a program"):
            latency = program.benchmark(*pack.inputs, warmup=1, runs=3)
        assert latency.runs == 3, (
            f"{subject.name}: benchmark(runs=3) reports {latency.runs} runs. Return the Latency of "
            "the timed runs, those for warming up left out."
        )


def packed(subject: Subject, scheme: QuantizationScheme, names: Iterable[str]) -> list[Pack]:
    """Return packs of all models of which a scheme quantizes everything."""
    found = {
        name: _EVERY[name]
        for name in names
        if subject.includes(name)
        and name not in subject.requirements.leaves_out_models
        and _fits(subject, _EVERY[name], scheme)
    }
    assert found, (
        f"{subject.name} declares {scheme} and quantizes all of no model that it was given"
    )
    items = list(found.items())
    return [Pack(dict(items[at : at + _TOGETHER])) for at in range(0, len(items), _TOGETHER)]


def _small(subject: Subject) -> tuple[Pack, QuantizationScheme]:
    """Return a pack of few models for checks of how programs are run."""
    subject.needs("lowers")
    subject.needs("runs")
    scheme = subject.main_scheme
    return packed(subject, scheme, _FEW)[0], scheme


def _needs_programs(subject: Subject, scheme: QuantizationScheme) -> None:
    subject.needs("lowers")
    if reason := subject.requirements.leaves_out_schemes.get(scheme.name):
        subject.not_asked(reason)
    if scheme.is_qat and without_qat(scheme) in subject.schemes:
        subject.not_asked("how a model was trained changes no program")


def _fits(subject: Subject, model: ZooModel, scheme: QuantizationScheme) -> bool:
    if model.dynamic_shapes or model is ZOO["cond"]:
        return False  # Checks of their own lower these.
    report = subject.annotated(model, scheme).report
    return bool(report.quantized) and not report.in_float


def check_programs(subject: Subject, pack: Pack, scheme: QuantizationScheme) -> None:
    """Check that the program of a pack computes what its converted model does.

    Args:
        subject: The backend.
        pack: Models that the scheme quantizes.
        scheme: The scheme.
    """
    try:
        converted, program = subject.lower_pack(pack, scheme)
    except ConformanceFailure as failure:
        culprit = _culprit(subject, pack, scheme)
        raise ConformanceFailure(f"{failure}\nA model at fault: {culprit}") from failure
    _check_delegates(subject, pack, program)
    kinds = pack.inputs_by_kind()
    if subject.requirements.verifies:
        for kind, inputs in kinds.items():
            subject.verify(program, inputs, f"{scheme}, on inputs {kind}")
    if not subject.requirements.runs:
        return
    with subject.step(f"run_many of the program of {scheme}"):
        outputs = program.run_many(kinds.values())
    wrong: dict[str, str] = {}
    for (kind, inputs), output in zip(kinds.items(), outputs, strict=True):
        for name, symptom in _differences(subject, pack, converted, inputs, output):
            wrong.setdefault(name, f"{name} ({symptom}) on inputs {kind}")
    assert not wrong, (
        f"{subject.name}: the program of {scheme} differs from the converted model by more than "
        f"rounding: {'; '.join(wrong.values())}. lower, or the runner, changes what is computed."
    )


def _differences(
    subject: Subject, pack: Pack, converted: GraphModule, inputs: tuple[Any, ...], output: Any
) -> list[tuple[str, str]]:
    expected = converted(*inputs)
    wanted, found = tree_structure(expected), tree_structure(output)
    assert wanted == found, (
        f"{subject.name}: a program returns {found}, its model {wanted}. Give LoweredProgram the "
        "out_spec of the exported program's call_spec as its structure."
    )
    rounding = Rounding.of_model(converted, *inputs)
    leaves = zip(pack.names_of_leaves(expected), tree_leaves(output), strict=True)
    symptoms = ((name, rounding.difference_at(i, leaf)) for i, (name, leaf) in enumerate(leaves))
    return [(name, symptom) for name, symptom in symptoms if symptom]


def _check_delegates(subject: Subject, pack: Pack, program: LoweredProgram) -> None:
    if not subject.requirements.delegates:
        return
    outside = [
        f"{pack.parts[part]} ({node.operator}: {node.reason})"
        for node in program.report.undelegated
        if (part := node.module.partition(".")[0]) in pack.parts
    ]
    assert not outside, (
        f"{subject.name}: quantized, and in no delegate of the program: {'; '.join(outside)}. Take "
        "their rows out of the table, or mend the lowering."
    )


def _culprit(subject: Subject, pack: Pack, scheme: QuantizationScheme) -> str:
    """Halve the models until one is left that fails, since lowering each alone may take long."""
    suspects = list(pack.models)

    def fails(names: list[str]) -> str:
        try:
            subject.lower_pack(Pack({name: pack.models[name] for name in names}), scheme)
        except AssertionError as failure:
            return str(failure).splitlines()[0]
        return ""

    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if fails(half) else suspects[len(half) :]
    alone = fails(suspects)
    return f"{suspects[0]}, alone: {alone}" if alone else f"{suspects[0]}, together with others"
