"""pytest plugin: ``--qcore-backend`` names the backend that ``qcore.testing`` is run for.

pytest loads this module in every environment that has qcore: it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcore.testing.certificate import Findings

__all__ = ["FINDINGS", "OPTION", "QUICK"]

OPTION = "--qcore-backend"
QUICK = "--qcore-quick"
_FACTS_OPTION = "--qcore-facts"
_CERTIFICATE_OPTION = "--qcore-certificate"
_WORKER_KEY = "qcore_facts"
_BACKEND = "qcore_backend"

FINDINGS = pytest.StashKey[Findings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("qcore")
    group.addoption(
        OPTION,
        metavar="NAME",
        default="",
        help="the backend that qcore's conformance checks are run for (--pyargs qcore.testing)",
    )
    group.addoption(
        QUICK,
        action="store_true",
        help="run a few of the conformance checks on a few models, within seconds",
    )
    group.addoption(
        _CERTIFICATE_OPTION,
        metavar="FILE",
        default="",
        help="write what the conformance checks have shown, by backend, as JSON",
    )
    group.addoption(
        _FACTS_OPTION,
        metavar="DIR",
        default="",
        help="write the same of each backend to DIR/NAME.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the place for findings."""
    config.stash[FINDINGS] = Findings()
    if config.getoption(QUICK):
        config.stash[FINDINGS].whole = False
    # It gets the reports of workers of pytest-xdist, too.
    config.pluginmanager.register(_Reports(config.stash[FINDINGS]))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note which backend a check is asked of, for whoever gets its report."""
    suite: Any = getattr(item, "cls", None)
    if hasattr(suite, "make_subject"):
        backend = suite.backend or item.config.getoption(OPTION)
        item.user_properties.append((_BACKEND, backend))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Note that not everything is asked."""
    for item in items[:1]:
        item.config.stash[FINDINGS].whole = False


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the facts of a worker of pytest-xdist."""
    facts, whole = getattr(node, "workeroutput", {}).get(_WORKER_KEY, ({}, True))
    findings = node.config.stash[FINDINGS]
    findings.merge(facts)
    findings.whole = findings.whole and whole


class _Reports:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def pytest_runtest_logreport(self, report: Any) -> None:
        _note(self._findings, report)


def _note(findings: Findings, report: Any) -> None:
    backend = dict(report.user_properties).get(_BACKEND)
    if backend is None or (report.when != "call" and report.passed):
        return
    check = report.nodeid.rpartition("::")[2].removeprefix("test_")
    outcome, reason = report.outcome, ""
    if report.skipped and hasattr(report, "wasxfail"):
        outcome, reason = "failed as expected", report.wasxfail
    elif report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    findings.outcomes.setdefault(backend, {})[check] = (outcome, reason)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the findings where they were asked for; a worker sends them on."""
    findings = session.config.stash[FINDINGS]
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_KEY] = (findings.facts, findings.whole)
        return
    folder: Any = session.config.getoption(_FACTS_OPTION)
    path: Any = session.config.getoption(_CERTIFICATE_OPTION)
    if folder:
        findings.write(Path(folder))
    if path:
        findings.write_one(Path(path))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the certificates."""
    lines = list(config.stash[FINDINGS].lines())
    if lines:
        terminalreporter.section("qcore's conformance suite")
        for line in lines:
            terminalreporter.write_line(line)
