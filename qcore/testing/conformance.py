"""``BackendConformance``: what qcore asks of every backend, as a test class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import pytest

import qcore
from qcore.testing.models import ZOO
from qcore.testing.plugin import FINDINGS, OPTION, QUICK
from qcore.testing.requirements import Requirements
from qcore.testing.subject import Subject
from qcore.testing.suite.annotation import AnnotationChecks
from qcore.testing.suite.discovery import DiscoveryChecks
from qcore.testing.suite.flow import FlowChecks
from qcore.testing.suite.lowering import LoweringChecks
from qcore.testing.suite.operators import OperatorChecks
from qcore.testing.suite.programs import ProgramChecks
from qcore.testing.suite.robustness import RobustnessChecks
from qcore.testing.suite.schemes import SchemeChecks

__all__ = ["BackendConformance"]

#: The models of checks and programs with ``--qcore-quick``.
QUICK_MODELS: Final = (
    "linear",
    "conv_relu6",
    "residual_add",
    "integer_tensors",
    "conv2d, grouped, stride 2 by 1",
    "conv2d, relu",
    "outputs in a dict",
)
_LEFT_OUT_WHEN_QUICK: Final = (
    "listing_imports_nothing_heavy",
    "cost_is_linear_in_the_number_of_nodes",
    "declared_source_scheme_is_executed",
    "lower_gives_the_same_program_every_time",
    "lower_keeps_the_model",
    "sizes_that_vary",
    "a_model_partly_in_float_lowers",
    "configurations_can_be_pickled",
    "selection_is_honoured",
    "lower_refuses_unknown_options",
    "the_result_is_the_same_every_time",
    "program_of_a_declared_scheme",
    "a_program_can_be_timed",
)

_PARAMETERS = {"scheme": "supported_schemes", "source_scheme": "source_schemes"}


def _none_declared(attribute: str) -> Any:
    # Where the backend does not load, other checks say so.
    reason = f"not asked: no {attribute} are declared"
    return pytest.param(None, id="none declared", marks=pytest.mark.skip(reason=reason))


# pytest collects the checks of the last base first.
class BackendConformance(
    RobustnessChecks,
    LoweringChecks,
    ProgramChecks,
    OperatorChecks,
    FlowChecks,
    AnnotationChecks,
    SchemeChecks,
    DiscoveryChecks,
):
    """The checks that every backend passes.

    An author's test file is a subclass::

        class TestConformance(BackendConformance):
            backend = "mybackend"
            requirements = Requirements(dynamic_shapes=False)
            expected_failures = {"pt2e_flow[attention]": "the compiler has no batched matmul"}

    Attributes:
        backend: The name of the backend, as ``qcore.get_quantizer`` takes it.
        requirements: What the backend can do; ``None`` takes what its class says in
            ``conformance``, a mapping of the same names, else what most backends can do.
        expected_failures: Reason by check: its name without ``test_``, with the parameter in
            brackets or, for all of them, without. Each must fail; one that passes is an error, so
            that the list stays true.
    """

    backend: ClassVar[str] = ""
    requirements: ClassVar[Requirements | None] = None
    expected_failures: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, request: pytest.FixtureRequest) -> Subject:
        """The backend under test."""
        return cls.make_subject(request.config)

    @classmethod
    def make_subject(cls, config: pytest.Config | None = None) -> Subject:
        """Build what the checks take.

        Args:
            config: Gets the facts that passing checks record; ``None`` drops them.

        Returns:
            The backend under test.
        """
        name = cls.backend or (config.getoption(OPTION) if config else "")
        if not name:
            raise pytest.UsageError(
                f"{cls.__name__} names no backend. Write backend = 'yours' in the class, or pass "
                f"{OPTION} yours."
            )
        subject = Subject(name, cls.requirements or Requirements.declared_by(name))
        if config is not None:
            subject.record = config.stash[FINDINGS].recorder(name)
            if config.getoption(QUICK):
                subject.models = QUICK_MODELS
        return subject

    @pytest.fixture(autouse=True)
    def _quick(self, request: pytest.FixtureRequest) -> None:
        if not request.config.getoption(QUICK):
            return
        name = request.node.originalname.removeprefix("test_")
        given = getattr(getattr(request.node, "callspec", None), "params", {})
        model = given.get("model", given.get("operator", QUICK_MODELS[0]))
        schemes = self._declared(request.config, "supported_schemes") if "scheme" in given else []
        if (
            name in _LEFT_OUT_WHEN_QUICK
            or model not in QUICK_MODELS
            or given.get("scheme") not in [None, *schemes[:1]]
        ):
            pytest.skip(f"left out by {QUICK}")

    @pytest.fixture(autouse=True)
    def _found(self, request: pytest.FixtureRequest) -> None:
        if hasattr(DiscoveryChecks, request.node.originalname):
            return
        subject = request.getfixturevalue("subject")
        if not subject.loads:  # One message about it is better than hundreds.
            subject.not_asked("it does not load, and another check says why")

    @pytest.fixture(autouse=True)
    def _fixed_sizes(self, request: pytest.FixtureRequest) -> None:
        given = getattr(getattr(request.node, "callspec", None), "params", {})
        model = ZOO.get(given.get("model", ""))
        if model is not None and model.dynamic_shapes:
            # Another check expects a refusal.
            request.getfixturevalue("subject").needs("dynamic_shapes")

    @pytest.fixture(autouse=True)
    def _expected_failure(self, request: pytest.FixtureRequest) -> None:
        check = request.node.name.removeprefix("test_")
        reason = self.expected_failures.get(check) or self.expected_failures.get(
            check.partition("[")[0]
        )
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the checks of schemes once for each scheme that is declared."""
        for parameter, attribute in _PARAMETERS.items():
            if parameter in metafunc.fixturenames:
                declared = self._declared(metafunc.config, attribute)
                cases = [pytest.param(scheme, id=str(scheme)) for scheme in declared]
                metafunc.parametrize(parameter, cases or [_none_declared(attribute)])

    def _declared(self, config: pytest.Config, attribute: str) -> list[Any]:
        try:
            quantizer = self.make_subject(config).quantizer()
        except AssertionError:
            return []
        return list(getattr(quantizer, attribute))

    def test_expected_failures_have_names_and_reasons(self, subject: Subject) -> None:
        checks = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        for check, reason in self.expected_failures.items():
            name = re.sub(r"\[.*", "", check)
            assert name in checks, (
                f"expected_failures names {check!r}, and there is no such check. Did you mean "
                f"{', '.join(qcore.errors.near_misses(name, checks)) or 'another'}?"
            )
            assert reason.strip(), f"expected_failures gives no reason for {check!r}"
            subject.record("expected failure", check, reason)
