"""Checks on the way from a captured model to a converted one."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.annotation.in_place import functional_twin
from qcore.errors import PartialQuantizationError
from qcore.graph import control_flow_bodies, is_compute_node, is_float_tensor
from qcore.quantizer import Quantizer
from qcore.report import AnnotationReport
from qcore.schemes import QuantizationScheme
from qcore.testing.comparison import compared_outputs, expected_sqnr_db, sqnr_db
from qcore.testing.models import ZOO, ZooModel
from qcore.testing.packs import Pack
from qcore.testing.subject import Annotated, Subject, fresh_graph
from qcore.testing.suite.qspecs import check_converted

__all__ = ["FlowChecks"]

every_model = pytest.mark.parametrize("model", ZOO)

# Rewrites may sum in another order.
_REORDERED_DB = 90.0

# Errors of layers in series add up, and ranges of activations were seen on few samples.
_IN_SERIES_DB = 10.0


class FlowChecks:
    """Rewriting changes nothing, and conversion no more than quantization does."""

    @every_model
    def test_transform_keeps_the_outputs(self, subject: Subject, model: str) -> None:
        zoo = ZOO[model]
        pack = Pack({model: zoo})
        inputs = [*zoo.samples, *pack.inputs_by_kind().values()]
        expected = [zoo.module()(*sample) for sample in inputs]
        found = subject.annotated(zoo)
        for sample, before in zip(inputs, expected, strict=True):
            with subject.step(
                f"running {model} as transform_for_annotation left it",
                "Check the types of what you put in: integers stay integers.",
            ):
                after = found.graph(*sample)
            for reference, output in compared_outputs(before, after):
                if not reference.is_floating_point():
                    assert torch.equal(reference, output), (
                        f"{subject.name}: transform_for_annotation changes the integers that "
                        f"{model} returns"
                    )
                    continue
                noise = sqnr_db(reference, output)
                assert noise >= _REORDERED_DB, (
                    f"{subject.name}: transform_for_annotation changes what {model} computes in "
                    f"float: {noise:.1f} dB from the original. Rewrite only into what gives the "
                    "same outputs."
                )

    @every_model
    def test_transform_leaves_alone_what_stays_in_float(self, subject: Subject, model: str) -> None:
        before = _operators(fresh_graph(ZOO[model]))
        quantizer = subject.in_float()
        if quantizer is None:
            subject.not_asked("it refuses set_global(None)")
        after = _operators(subject.annotate(fresh_graph(ZOO[model]), quantizer, model).graph)
        assert before == after, (
            f"{subject.name}: transform_for_annotation rewrites {model}, of which set_global(None) "
            f"leaves everything in float: {before} became {after}. Rewrite a node only if "
            "plan.config_for(node) gives a configuration."
        )

    @every_model
    def test_pt2e_flow(self, subject: Subject, model: str) -> None:
        zoo, scheme = ZOO[model], subject.main_scheme
        samples = [tuple(map(torch.clone, sample)) for sample in zoo.samples]
        try:
            converted, report = _converted(subject, zoo, scheme)
        except PartialQuantizationError as error:
            _check_refusal_of_partial(subject, subject.annotated(zoo), zoo, str(error))
            subject.record("model", model, "refused")
            return
        check_converted(subject, converted, scheme)
        inputs = [*zoo.samples, *([zoo.other_sizes] if zoo.other_sizes else [])]
        for sample in inputs:
            expected = zoo.module()(*sample)
            with subject.step(f"running {model} after convert_pt2e"):
                actual = converted(*sample)
            for before, after in compared_outputs(expected, actual):
                if not before.is_floating_point():
                    assert torch.equal(before, after), (
                        f"{subject.name}: quantization changes the integers that {model} returns"
                    )
                    continue
                noise, least = sqnr_db(before, after), expected_sqnr_db(scheme) - _IN_SERIES_DB
                assert noise >= least, (
                    f"{subject.name}: {model} quantized with {scheme} is {noise:.1f} dB from "
                    f"float, expected at least {least:.0f} dB. A qspec is on the wrong edge, or "
                    "values of different ranges share one."
                )
        for before, sample in zip(samples, zoo.samples, strict=True):
            for kept, now in zip(before, sample, strict=True):
                assert torch.equal(kept, now), f"{subject.name}: {model} now writes to its inputs"
        subject.record("model", model, f"{len(report.quantized)} of {len(report.decisions)}")

    def test_partial_quantization(self, subject: Subject) -> None:
        three = ZOO["three_linears"]
        scheme = subject.main_scheme
        quantizer = subject.quantizer().set_module_name("a", scheme).set_module_name("c", scheme)
        if len(subject.annotated(three).report.quantized) < 3:
            subject.not_asked(f"it does not quantize all linear layers of {three.name}")

        def quantize() -> qcore.QuantizedModel:
            return qcore.quantize(fresh_graph(three), quantizer, three.samples)

        if not subject.requirements.partial:
            message = subject.expect_refusal(
                "a model partly in float", quantize, "linear_1", error=PartialQuantizationError
            )
            _check_refusal_of_partial(
                subject,
                subject.annotate(fresh_graph(three), quantizer, three.name),
                three,
                message,
            )
            return
        with subject.step("qcore.quantize of three linear layers, one of them in float"):
            report = quantize().report
        in_float = [d.node for d in report.in_float if "linear" in d.operator]
        assert in_float == ["linear_1"], (
            f"{subject.name}: with rules for a and c, {in_float} stay in float, expected linear_1 "
            "alone"
        )

    def test_the_model_of_the_user_is_kept(self, subject: Subject) -> None:
        zoo = ZOO["conv_bn_relu"]  # What folds batch norm writes to weights.
        if not subject.annotated(zoo).report.quantized:
            zoo = subject.probe(subject.main_scheme) or ZOO["linear"]
        module = zoo.module()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        training = [m.training for m in module.modules()]
        try:
            with subject.step(f"qcore.quantize of {zoo.name}"):
                qcore.quantize(module, subject.selected(subject.main_scheme), zoo.samples)
        except PartialQuantizationError:
            pass
        changed = [n for n, tensor in module.state_dict().items() if not tensor.equal(before[n])]
        assert not changed, (
            f"{subject.name}: quantizing changes {', '.join(changed)} of the user's model. Write "
            "new tensors instead of changing parameters in place."
        )
        assert training == [m.training for m in module.modules()]

    def test_the_result_is_the_same_every_time(self, subject: Subject) -> None:
        zoo, scheme = ZOO["residual_add"], subject.main_scheme
        try:
            (first, _), (second, _) = (_converted(subject, zoo, scheme) for _ in range(2))
        except PartialQuantizationError:
            subject.not_asked(f"it refuses {zoo.name}, of which parts would stay in float")
        assert first.code == second.code, (
            f"{subject.name}: two runs on the same model give different graphs"
        )
        pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
        differ = [name for (name, a), (_, b) in pairs if not a.equal(b)]
        assert not differ, f"{subject.name}: {', '.join(differ)} differ between two runs"


def _operators(graph: GraphModule) -> list[str]:
    """Return what computes float from inputs: the types of integers are the backend's affair.

    Operators in place count as their functional twins, which the core puts in their place.
    """
    return [
        str(functional_twin(node.target) or node.target)
        for node in graph.graph.nodes
        if is_compute_node(node) and is_float_tensor(node) and node.all_input_nodes
    ]


def _converted(
    subject: Subject, zoo: ZooModel, scheme: QuantizationScheme
) -> tuple[GraphModule, AnnotationReport]:
    graph = fresh_graph(zoo)
    quantizer = subject.selected(subject.main_scheme)
    if any(True for _ in control_flow_bodies(graph)):
        with subject.step(f"quantize_with_submodules of {zoo.name}"):
            converted = quantizer.quantize_with_submodules(graph, zoo.samples)
        return converted, _report(quantizer)
    with subject.step(f"prepare_pt2e of {zoo.name} with {scheme}"):
        prepared = prepare_pt2e(graph, quantizer)
    with subject.step(f"calibrating {zoo.name}"):
        for sample in zoo.samples:
            prepared(*sample)
    with subject.step(f"convert_pt2e of {zoo.name}"):
        return convert_pt2e(prepared), _report(quantizer)


def _report(quantizer: Quantizer) -> AnnotationReport:
    report = quantizer.report
    assert report is not None
    return report


def _check_refusal_of_partial(
    subject: Subject, found: Annotated, zoo: ZooModel, message: str
) -> None:
    in_float = found.report.in_float
    assert not subject.requirements.partial, (
        f"{subject.name}: {zoo.name} is refused because part of it stays in float, and the "
        f"requirements say partial=True:\n{message}"
    )
    assert in_float, (
        f"{subject.name}: {zoo.name} is refused because part of it stays in float, and by the "
        f"decisions nothing does:\n{message}"
    )
    # Integers, for one, may stay as they are.
    told = [decision for decision in in_float if decision.node in message]
    inputs = found.graph.graph.find_nodes(op="placeholder")
    assert told or any(node.name in message for node in inputs), (
        f"{subject.name}: the refusal of {zoo.name} names none of the nodes that stay in float, "
        f"{', '.join(d.node for d in in_float)}. Return a Diagnostic for each that must not:\n"
        f"{message}"
    )
    for decision in told:
        assert decision.reason in message, (
            f"{subject.name}: the refusal of {zoo.name} names {decision.node} without the reason "
            f"of its decision, {decision.reason!r}:\n{message}"
        )
