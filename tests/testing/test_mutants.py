"""Each of many defects, planted in the example backend, is caught by a check that names it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import qcore
from qcore import registry
from qcore.annotation import OperatorPattern, SupportTable, annotate_graph, scalars_to_attributes
from qcore.annotation.patterns import OperatorMatch
from qcore.annotation.rules import write_annotation
from qcore.lowering import LoweredProgram
from qcore.plan import QuantizationPlan, Selectors
from qcore.report import AnnotationReport, Diagnostic
from qcore.schemes import LayerScheme, QuantizationScheme
from qcore.testing import BackendConformance, Subject
from qcore_portable import SCHEMES, TABLE, PortableBackend

aten = torch.ops.aten
Check = Callable[[Any, Subject], None]


class Suite(BackendConformance):
    __test__ = False
    backend = "portable"


@attrs.frozen
class Defect:
    backend: type
    check: Check
    says: str


DEFECTS: dict[str, Defect] = {}


def caught_by(check: Check, says: str) -> Callable[[type], type]:
    """Say which check catches a defect, and what its message has to contain."""

    def add(backend: type) -> type:
        DEFECTS[backend.__name__] = Defect(backend, check, says)
        return backend

    return add


def calls(name: str, *arguments: Any) -> Check:
    return lambda suite, subject: getattr(suite, f"test_{name}")(subject, *arguments)


def with_schemes(*schemes: Any) -> Any:
    return qcore.hookimpl(lambda self: schemes)


def lowered(self: Any, program: Any) -> LoweredProgram:
    return PortableBackend.lower(self, program, {})


# What is declared.

DYNAMIC = QuantizationScheme(8, 8, is_dynamic=True)
FOUR_BITS = QuantizationScheme(4, None)


@caught_by(
    calls("declared_scheme_is_executed", DYNAMIC),
    "declares 8da8w dynamic per-channel and quantizes none of linear, conv_bn_relu, residual_add",
)
class DeclaresASchemeThatItNeverUses(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, DYNAMIC)


@caught_by(
    calls("declared_scheme_is_executed", FOUR_BITS),
    "4w weight-only per-channel was selected, and linear has 8 bits on the edge from",
)
class AnnotatesEightBitsWhereFourAreDeclared(PortableBackend):
    supported_schemes = with_schemes(FOUR_BITS, *SCHEMES)

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        wide = plan.selectors.mapped(lambda _: SCHEMES[2].to_config())
        return annotate_graph(model, QuantizationPlan(wide), TABLE, "portable")


@caught_by(calls("schemes_are_hashable_and_unique"), "8a8w static per-channel is declared twice")
class DeclaresASchemeTwice(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, SCHEMES[0])


@caught_by(
    calls("schemes_are_hashable_and_unique"),
    "the hash of QuantizationScheme.* raised TypeError: unhashable type",
)
class DeclaresASchemeThatCannotBeHashed(PortableBackend):
    supported_schemes = with_schemes(*SCHEMES, QuantizationScheme(8, 8, ["per_channel"]))  # type: ignore[arg-type]


@caught_by(calls("schemes_are_the_same_every_time"), "supported_schemes answers differently")
class DeclaresOtherSchemesEveryTime(PortableBackend):
    asked: ClassVar[list[int]] = []

    @qcore.hookimpl
    def supported_schemes(self) -> Any:
        self.asked.append(1)
        return SCHEMES[len(self.asked) % 2 :]


@caught_by(
    calls("declared_source_scheme_is_executed", LayerScheme(8, 8, layer="embedding")),
    "quantize_ of a model with 8a8w static per-channel .embedding. raised",
)
class DeclaresEmbeddingsWithActivations(PortableBackend):
    supported_schemes = with_schemes(SCHEMES[0], LayerScheme(8, 8, layer="embedding"))


# How hooks are written.

HOOKS = calls("hooks_have_the_signatures_of_the_specification")


@caught_by(HOOKS, "annotate gives plan a default")
class GivesAHookParameterADefault(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any = None) -> Any:
        return annotate_graph(model, plan, TABLE, "portable")


@caught_by(HOOKS, "anotate is no hook of qcore. Did you mean 'annotate'")
class MisspellsAHook(PortableBackend):
    @qcore.hookimpl
    def anotate(self, model: Any, plan: Any) -> Any:
        return annotate_graph(model, plan, TABLE, "portable")


@caught_by(HOOKS, "validate_partial has the name of a hook and is not marked")
class ForgetsToMarkAHook(PortableBackend):
    def validate_partial(self, model: Any, plan: Any, report: Any) -> Any:
        return []


@caught_by(HOOKS, "breaks the hook contract.*graph")
class NamesAParameterOtherwise(PortableBackend):
    @qcore.hookimpl
    def annotate(self, graph: Any, plan: Any) -> Any:
        return annotate_graph(graph, plan, TABLE, "portable")


@caught_by(calls("an_unknown_option_is_refused"), "unknown option of get_quantizer was accepted")
class SwallowsEveryOption(PortableBackend):
    def __init__(self, **options: Any) -> None:
        pass


@caught_by(calls("every_quantizer_has_a_backend_of_its_own"), "two quantizers share one instance")
class IsASingleton(PortableBackend):
    instance: ClassVar[Any] = None

    def __new__(cls) -> Any:
        cls.instance = cls.instance or super().__new__(cls)
        return cls.instance


# What is annotated, and what is said of it.


def without(report: AnnotationReport, operator: str) -> AnnotationReport:
    kept = tuple(d for d in report.decisions if operator not in d.operator)
    return attrs.evolve(report, decisions=kept)


def edited(report: AnnotationReport, operator: str, **changes: Any) -> AnnotationReport:
    decisions = (
        attrs.evolve(d, **changes) if operator in d.operator else d for d in report.decisions
    )
    return attrs.evolve(report, decisions=tuple(decisions))


class Annotates(PortableBackend):
    """Annotates as the intact backend does, and lets a subclass spoil it."""

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        return self.spoiled(model, plan, annotate_graph(model, plan, TABLE, "portable"))

    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        raise NotImplementedError


@caught_by(
    calls("every_compute_node_has_a_decision", "residual_add"),
    "annotate says nothing of add in residual_add",
)
class SkipsAnOperatorSilently(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return without(report, "add")


@caught_by(
    calls("what_stays_in_float_has_a_reason", "attention"),
    r"softmax \(aten.softmax.int\) of attention stays in float under .* without a reason",
)
class GivesNoReason(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "softmax", reason="")


@caught_by(
    calls("decisions_are_what_was_annotated", "attention"),
    "softmax of attention is reported as quantized with 8a8w.*and no qspec is on it",
)
class ReportsWhatItDidNotDo(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "softmax", scheme="8a8w static per-channel", reason="")


@caught_by(
    calls("decisions_are_what_was_annotated", "residual_add"),
    "add of residual_add is reported in float .*, and has qspecs",
)
class QuantizesWhatItReportsInFloat(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        return edited(report, "add", scheme=None, reason="portable has no quantized add")


@caught_by(
    calls("nothing_is_quantized_under_none", "linear"),
    r"with set_global\(None\), linear of linear are annotated",
)
class QuantizesUnderNone(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rules = Selectors()
        rules.add_global(SCHEMES[0].to_config())
        return annotate_graph(model, QuantizationPlan(rules), TABLE, "portable")


class ForgetsRules(PortableBackend):
    """Reads some of the rules only."""

    forgets: ClassVar[dict[str, Any]] = {}

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rules = plan.selectors.mapped(lambda config: config)
        for name, value in self.forgets.items():
            setattr(rules, name, value)
        return annotate_graph(model, QuantizationPlan(rules), TABLE, "portable")


@caught_by(
    calls("selection_is_honoured", "module name to None"),
    "selection by module name to None quantizes the linear layers abc of a, b, c, expected ac",
)
class IgnoresModuleNames(ForgetsRules):
    forgets: ClassVar = {"module_names": {}}


@caught_by(
    calls("selection_is_honoured", "module type"),
    "selection by module type quantizes the linear layers none of a, b, c, expected abc",
)
class IgnoresModuleTypes(ForgetsRules):
    forgets: ClassVar = {"module_types": {}}


@caught_by(calls("selection_is_honoured", "filter"), "selection by filter quantizes .*abc")
class IgnoresTheFilter(ForgetsRules):
    forgets: ClassVar = {"filter_function": None}


@caught_by(calls("io_selects_the_inputs"), "set_io leaves the inputs unquantized")
class IgnoresIo(ForgetsRules):
    forgets: ClassVar = {"io": None}


class GreedyTable(SupportTable):
    """Fuses an activation whether or not something else reads the value before it."""

    def match(self, node: Any, config: Any, plan: Any) -> Any:
        found = super().match(node, config, plan)
        if found is not None:
            for user in node.users:
                if user.target in found.pattern.fuses:
                    return OperatorMatch(found.pattern, node, None, user)
        return found


@caught_by(
    calls("a_value_with_two_users_is_not_fused_over", "conv_with_two_users"),
    r"conv2d of conv_with_two_users has 2 users \(relu, add\).*leaves its value unquantized",
)
class FusesAValueWithTwoUsers(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        return annotate_graph(model, plan, GreedyTable(TABLE.patterns), "portable")


@caught_by(
    calls("annotating_twice_changes_nothing", "linear"),
    "annotating linear a second time changes linear",
)
class AnnotatesAgain(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        for node in model.graph.nodes:
            if node.target is aten.linear.default and not node.meta.setdefault("seen", []):
                node.meta["seen"].append(1)
            elif node.target is aten.linear.default:
                write_annotation(node, output=plan.config_for(node).output_activation)
        return report


@caught_by(
    calls("the_annotation_of_another_quantizer_is_kept"),
    "linear had an annotation of another quantizer, and annotate wrote over it",
)
class OverwritesAnotherQuantizer(PortableBackend):
    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            node.meta.pop(Q_ANNOTATION_KEY, None)
        return annotate_graph(model, plan, TABLE, "portable")


def changed_weight_qspec(**changes: Any) -> Any:
    def annotate(self: Any, model: Any, plan: Any) -> Any:
        report = annotate_graph(model, plan, TABLE, "portable")
        for node in model.graph.nodes:
            annotation: QuantizationAnnotation | None = node.meta.get(Q_ANNOTATION_KEY)
            for source, spec in (annotation.input_qspec_map if annotation else {}).items():
                if source.op == "get_attr" and spec is not None:
                    annotation.input_qspec_map[source] = type(spec)(**{**vars(spec), **changes})
        return report

    return qcore.hookimpl(annotate)


@caught_by(
    calls("qspecs_are_those_of_the_configuration", "linear"),
    "8a8w static per-channel was selected, and linear has 7 bits on the edge from",
)
class WastesHalfTheRangeOfWeights(PortableBackend):
    annotate = changed_weight_qspec(quant_min=-63, quant_max=63)


def _coarse() -> Any:
    from torchao.quantization.pt2e import PerChannelMinMaxObserver

    class Coarse(PerChannelMinMaxObserver):  # type: ignore[misc]
        def calculate_qparams(self) -> Any:
            scale, zero_point = super().calculate_qparams()
            return scale * 3, zero_point

    return Coarse


@caught_by(
    calls("declared_scheme_is_executed", SCHEMES[0]),
    r"the weight of linear in linear uses levels up to 4\d of 127: its scale is 3 times",
)
class GivesWeightsAWrongScale(PortableBackend):
    annotate = changed_weight_qspec(observer_or_fake_quant_ctr=_coarse())


@caught_by(
    calls("annotation_is_the_same_every_time"),
    "annotating .* twice from the start gives different",
)
class AnnotatesByChance(PortableBackend):
    dice: ClassVar = random.Random(1)

    @qcore.hookimpl
    def annotate(self, model: Any, plan: Any) -> Any:
        rows: list[OperatorPattern] = list(TABLE.patterns)
        rows.pop(self.dice.randrange(3))
        return annotate_graph(model, plan, SupportTable(rows), "portable")


@caught_by(
    calls("cost_is_linear_in_the_number_of_nodes"),
    "4 times the nodes take .* times the function calls",
)
class WalksTheGraphForEveryNode(Annotates):
    def spoiled(self, model: Any, plan: Any, report: AnnotationReport) -> Any:
        for _ in model.graph.nodes:
            sum(bool(plan.select(node)) for node in model.graph.nodes)
        return report


# What is rewritten.


@caught_by(
    calls("transform_keeps_the_outputs", "linear"),
    "transform_for_annotation changes what linear computes in float: .* dB",
)
class ChangesTheOutputs(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in list(model.graph.nodes):
            if node.target is aten.linear.default:
                with model.graph.inserting_after(node):
                    wrong = model.graph.call_function(aten.mul.Scalar, (node, 1.001))
                node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)  # noqa: B023
                wrong.meta = dict(node.meta)
        model.recompile()
        return model


@caught_by(
    calls("transform_keeps_the_outputs", "integer_tensors"),
    "running integer_tensors as transform_for_annotation left it raised|was torch.int64 and became",
)
class MakesIntegersFloat(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            if node.target in (aten.add.Tensor, aten.mul.Tensor):
                node.args = tuple(float(a) if isinstance(a, int) else a for a in node.args)
        model.recompile()
        return scalars_to_attributes(model, plan, (aten.add.Tensor,))


@caught_by(
    calls("transform_leaves_alone_what_stays_in_float", "conv_relu6"),
    r"transform_for_annotation rewrites conv_relu6, of which set_global\(None\) leaves everything",
)
class RewritesWhatStaysInFloat(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for node in model.graph.nodes:
            if node.target in (aten.relu6.default, aten.hardtanh.default):
                node.target, node.args = aten.clamp.default, (node.args[0], 0.0, 6.0)
        model.recompile()
        return model


@caught_by(
    calls("the_model_of_the_user_is_kept"),
    "quantizing changes .*weight of the user's model",
)
class WritesToTheModelOfTheUser(PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model: Any, plan: Any) -> Any:
        for parameter in model.parameters():
            parameter.data.mul_(1.0001)
        return model


# What may stay in float.


@caught_by(
    calls("pt2e_flow", "attention"),
    "attention is refused because part of it stays in float, and the requirements say partial=True",
)
class RefusesPartsInFloat(PortableBackend):
    @qcore.hookimpl
    def validate_partial(self, model: Any, plan: Any, report: Any) -> Any:
        return [Diagnostic(d.node, d.operator, d.module, d.reason) for d in report.in_float]


@caught_by(calls("partial_quantization"), "a model partly in float was accepted")
class SaysThatItRefusesPartsInFloat(PortableBackend):
    conformance: ClassVar = {"delegates": False, "partial": False}


# What is lowered.


@caught_by(calls("lower_refuses_unknown_options"), "an unknown option of lower was accepted")
class IgnoresOptionsOfLower(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        return lowered(self, program)


@caught_by(
    calls("lower_returns_a_program_with_a_report"),
    "reading the program's buffer raised .*truncated",
)
class CutsTheProgramShort(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, buffer=whole.buffer[:-64])


@caught_by(
    calls("the_report_names_what_is_not_delegated"),
    r"calls quantized_decomposed.\w+ \d times outside any delegate, and the report names 0 of them",
)
class HidesStrayNodes(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, report=attrs.evolve(whole.report, stray=()))


@caught_by(calls("a_saved_program_is_read_back"), r"suffix '.bin', and their format says '.pte'")
class NamesAnotherSuffix(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        return attrs.evolve(lowered(self, program), suffix=".bin")


@caught_by(calls("lower_returns_a_program_with_a_report"), "its report for 'xnnpack'")
class SignsWithAnotherName(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, report=attrs.evolve(whole.report, backend="xnnpack"))


@caught_by(calls("lower_keeps_the_model"), "lower changes the converted model of linear")
class LowersInPlace(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        for tensor in (*program.state_dict.values(), *program.constants.values()):
            if tensor.dtype == torch.int8:
                tensor.neg_()
        return lowered(self, program)


@caught_by(
    calls("program_of_a_declared_scheme", SCHEMES[0]),
    "the program of linear with 8a8w static per-channel is .* dB from the converted model",
)
class LowersWithAWrongScale(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        target = torch.ops.quantized_decomposed.dequantize_per_tensor.default
        for node in program.graph.nodes:
            if node.target is target:
                node.args = (node.args[0], node.args[1] * 1.1, *node.args[2:])
        program.graph_module.recompile()
        return lowered(self, program)


@caught_by(
    calls("a_program_that_does_not_run_here_says_so"),
    "program.run, which the requirements say does not work here was accepted",
)
class SaysThatNothingRunsHere(PortableBackend):
    conformance: ClassVar = {"delegates": False, "runs": False}


@caught_by(calls("quantized_operators_are_delegated"), "nothing of linear is in a delegate")
class SaysThatItDelegates(PortableBackend):
    conformance: ClassVar = {"delegates": True}


@pytest.fixture
def registered() -> Iterator[Callable[[type], None]]:
    """Registers a backend as ``portable`` for one test."""
    yield lambda backend: qcore.register_backend("portable", backend)
    registry.unregister_backend("portable")


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_caught_and_named(
    name: str, registered: Callable[[type], None]
) -> None:
    defect = DEFECTS[name]
    registered(defect.backend)
    subject = Suite.make_subject()
    with pytest.raises(AssertionError) as caught:
        defect.check(Suite(), subject)
    assert re.search(defect.says, str(caught.value), re.DOTALL), caught.value


# What is wrong before a class is there.

SOURCE = """
import qcore_portable

class Backend(qcore_portable.PortableBackend):
    pass
"""

LOADS = calls("it_loads")

DISTRIBUTIONS: dict[str, tuple[str, Check, str]] = {
    "crashes at import": (
        "import no_such_driver",
        LOADS,
        "loading the backend raised BackendLoadError: .*No module named 'no_such_driver'",
    ),
    "an instance in place of the class": (
        f"{SOURCE}\nBackend = Backend()",
        LOADS,
        "loading the backend raised BackendLoadError: .*not a class",
    ),
    "another API version": (
        SOURCE.replace("pass", "api_version = 9"),
        calls("it_states_the_api_version"),
        "has api_version 9; this qcore has hook API 2",
    ),
    "no API version": (
        "class Backend:\n    pass",
        calls("it_states_the_api_version"),
        "does not state api_version",
    ),
}


@pytest.mark.parametrize("defect", DISTRIBUTIONS)
def test_a_distribution_with_a_defect_is_caught(defect: str, install: Callable[..., None]) -> None:
    source, check, says = DISTRIBUTIONS[defect]
    install("qcore-planted", "planted", source, planted="planted:Backend")
    assert caught(check, says)


def caught(check: Check, says: str) -> bool:
    with pytest.raises(AssertionError) as failure:
        check(Suite(), Subject("planted"))
    assert re.search(says, str(failure.value), re.DOTALL), failure.value
    return True


def test_two_distributions_with_one_name_are_caught(install: Callable[..., None]) -> None:
    install("qcore-planted", "planted", SOURCE, planted="planted:Backend")
    install("qcore-twin", "twin", SOURCE, planted="twin:Backend")
    assert caught(
        calls("one_distribution_claims_the_name"),
        "2 distributions claim the name 'planted': qcore-.* 1.0 .*qcore-.* 1.0 .*Rename",
    )


def test_code_that_runs_when_python_starts_is_caught(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install("qcore-planted", "planted", SOURCE, planted="planted:Backend")
    (tmp_path / "sitecustomize.py").write_text("import planted")
    assert caught(
        calls("listing_imports_nothing_heavy"), "listing backends imports .*planted.*torch"
    )


def test_a_backend_that_is_not_installed_is_told_how() -> None:
    assert caught(
        calls("one_distribution_claims_the_name"),
        "no distribution provides the backend 'planted'.*entry point in the group 'qcore.backends'",
    )
