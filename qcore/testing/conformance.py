"""``BackendConformance``: what qcore asks of every backend, as a test class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

import qcore
from qcore.testing.plugin import FACTS, OPTION
from qcore.testing.requirements import Requirements
from qcore.testing.subject import Subject
from qcore.testing.suite.annotation import AnnotationChecks
from qcore.testing.suite.discovery import DiscoveryChecks
from qcore.testing.suite.flow import FlowChecks
from qcore.testing.suite.lowering import LoweringChecks
from qcore.testing.suite.operators import OperatorChecks
from qcore.testing.suite.robustness import RobustnessChecks
from qcore.testing.suite.schemes import SchemeChecks

__all__ = ["BackendConformance"]

_PARAMETERS = {"scheme": "supported_schemes", "source_scheme": "source_schemes"}


def _none_declared(attribute: str) -> Any:
    # Where the backend does not load, other checks say so.
    reason = f"not asked: no {attribute} are declared"
    return pytest.param(None, id="none declared", marks=pytest.mark.skip(reason=reason))


# pytest collects the checks of the last base first.
class BackendConformance(
    RobustnessChecks,
    LoweringChecks,
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
            subject.record = config.stash[FACTS].recorder(name)
        return subject

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
