"""What the suite asks of a backend that says no: that it refuses, with reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

import qcore
from qcore import registry
from qcore.errors import BackendLoadError, LoweringError, RuntimeUnavailableError
from qcore.graph import is_float_tensor, tensor_value
from qcore.report import Diagnostic
from qcore.schemes import LayerScheme
from qcore.testing import BackendConformance, Requirements, Subject
from qcore.testing.operators import OPERATORS
from qcore_portable import SCHEMES, PortableBackend


class NoHost:
    """Stands for a device that is not here."""

    def session(self, buffer: bytes) -> Any:
        raise RuntimeUnavailableError("strict runs on the device only: save the program")


class StrictBackend(PortableBackend):
    """Takes whole models of fixed sizes only, and runs nothing here."""

    conformance: ClassVar = {
        "delegates": False,
        "partial": False,
        "dynamic_shapes": False,
        "runs": False,
    }

    @qcore.hookimpl
    def validate_partial(self, model: Any, plan: Any, report: Any) -> Any:
        nodes = {node.name: node for node in model.graph.nodes}
        return [
            Diagnostic(d.node, d.operator, d.module, d.reason)
            for d in report.in_float
            if is_float_tensor(nodes[d.node])
        ]

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        import attrs

        for node in program.graph.nodes:
            value = tensor_value(node)
            if value is not None and not all(isinstance(size, int) for size in value.shape):
                raise LoweringError(f"strict plans memory for fixed sizes, and {node} varies.")
        lowered = PortableBackend.lower(self, program, options)
        return attrs.evolve(lowered, runner=NoHost())


class Suite(BackendConformance):
    __test__ = False
    backend = "portable"


@pytest.fixture(scope="module")
def strict() -> Iterator[Subject]:
    qcore.register_backend("portable", StrictBackend)
    yield Suite.make_subject()
    registry.unregister_backend("portable")


FACTS = (
    ("partial_quantization", ()),
    ("pt2e_flow", ("attention",)),
    ("pt2e_flow", ("integer_tensors",)),
    ("pt2e_flow", ("residual_add",)),
    ("pt2e_flow", ("cond",)),
    ("the_model_of_the_user_is_kept", ()),
    ("the_result_is_the_same_every_time", ()),
    ("selection_is_honoured", ("module name to None",)),
    ("sizes_that_vary", ()),
    ("a_program_that_does_not_run_here_says_so", ()),
    ("program_of_a_declared_scheme", (SCHEMES[0],)),
)


NOT_ASKED = (
    ("what_is_left_out_is_known_and_says_why", (), "it leaves out nothing"),
    ("every_quantized_model_is_executed", (SCHEMES[0],), "it states runs=False; the programs"),
    ("lower_says_what_is_missing", (), "it states lowers=True"),
    ("a_program_refuses_inputs_that_do_not_fit", (), "it states runs=False"),
    ("a_model_partly_in_float_lowers", (), "it states partial=False"),
)


@pytest.mark.parametrize(("check", "arguments", "why"), NOT_ASKED)
def test_a_check_that_is_not_asked_is_skipped_with_the_reason(
    strict: Subject, check: str, arguments: tuple[str, ...], why: str
) -> None:
    with pytest.raises(pytest.skip.Exception, match=f"not asked of portable: {why}"):
        getattr(Suite(), f"test_{check}")(strict, *arguments)


class SourceBackend(StrictBackend):
    """Quantizes weights before capture, and nothing in the PT2E flow."""

    @qcore.hookimpl
    def supported_schemes(self) -> Any:
        return [s for s in PortableBackend().supported_schemes() if isinstance(s, LayerScheme)]


@pytest.mark.parametrize(
    "check",
    [
        "every_compute_node_has_a_decision",
        "what_stays_in_float_has_a_reason",
        "decisions_are_what_was_annotated",
        "qspecs_are_those_of_the_configuration",
        "decision_on_an_operator",
    ],
)
def test_checks_of_each_scheme_are_not_asked_where_none_is_of_the_flow(
    strict: Subject, check: str
) -> None:
    qcore.register_backend("source", SourceBackend)
    model = "linear" if check != "decision_on_an_operator" else next(iter(OPERATORS))
    with pytest.raises(pytest.skip.Exception, match="it declares no scheme of the PT2E flow"):
        getattr(Suite(), f"test_{check}")(Subject("source", strict.requirements), model)
    registry.unregister_backend("source")


@pytest.mark.parametrize(("check", "arguments"), FACTS)
def test_a_backend_that_refuses_as_it_says_passes(
    strict: Subject, check: str, arguments: tuple[str, ...]
) -> None:
    getattr(Suite(), f"test_{check}")(strict, *arguments)


def test_a_refused_model_is_recorded_as_such(strict: Subject) -> None:
    facts: dict[str, str] = {}
    recording = Subject(
        "portable", strict.requirements, lambda kind, key, value: facts.update({key: value})
    )
    Suite().test_pt2e_flow(recording, "attention")
    assert facts == {"attention": "refused"}


def test_requirements_of_another_name_are_an_error() -> None:
    odd = type("Odd", (PortableBackend,), {"conformance": {"partialy": False}})
    qcore.register_backend("odd", odd)
    try:
        with pytest.raises(
            BackendLoadError, match="states partialy in conformance.*There are: opt"
        ):
            Requirements.declared_by("odd")
    finally:
        registry.unregister_backend("odd")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"leaves_out_models": {"conv2d, relu7": "slow"}}, "conv2d, relu7.*Did you mean conv2d, r"),
        ({"leaves_out_models": {"conv2d, relu": " "}}, "gives no reason for 'conv2d, relu'"),
        ({"leaves_out_schemes": {"8da9w": "slow"}}, "leaves_out_schemes names '8da9w'"),
    ],
)
def test_what_is_left_out_has_a_name_that_there_is_and_a_reason(
    strict: Subject, flags: Any, says: str
) -> None:
    subject = Subject(strict.name, Requirements(**flags))
    with pytest.raises(AssertionError, match=says):
        Suite().test_what_is_left_out_is_known_and_says_why(subject)
