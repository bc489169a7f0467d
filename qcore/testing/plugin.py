"""pytest plugin: ``--qcore-backend`` names the backend that ``qcore.testing`` is run for.

pytest loads this module in every environment that has qcore: it imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FACTS", "OPTION", "Facts"]

OPTION = "--qcore-backend"
_FACTS_OPTION = "--qcore-facts"
_WORKER_KEY = "qcore_facts"


class Facts:
    """What passing checks have found out about backends.

    Attributes:
        found: By backend, by kind of fact, by key: the last value.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, str]]] = {}

    def recorder(self, backend: str) -> Callable[[str, str, str], None]:
        """Return a function that records facts about a backend.

        Args:
            backend: Its name.

        Returns:
            A function of kind, key and value.
        """

        def record(kind: str, key: str, value: str) -> None:
            self.found.setdefault(backend, {}).setdefault(kind, {})[key] = value

        return record

    def merge(self, found: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
        """Take in what another process has found out.

        Args:
            found: Facts by backend, by kind, by key.
        """
        for backend, kinds in found.items():
            record = self.recorder(backend)
            for kind, facts in kinds.items():
                for key, value in facts.items():
                    record(kind, key, value)

    def write(self, folder: Path) -> None:
        """Write a JSON file for each backend.

        Args:
            folder: Where to; made if need be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for backend, facts in self.found.items():
            text = json.dumps(facts, indent=1, sort_keys=True)
            (folder / f"{backend}.json").write_text(f"{text}\n", encoding="utf-8")


FACTS = pytest.StashKey[Facts]()


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
        _FACTS_OPTION,
        metavar="DIR",
        default="",
        help="write what the conformance checks find out about each backend to DIR/NAME.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the place for facts."""
    config.stash[FACTS] = Facts()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the facts of a worker of pytest-xdist."""
    found = getattr(node, "workeroutput", {}).get(_WORKER_KEY, {})
    node.config.stash[FACTS].merge(found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the facts where they were asked for; a worker sends them to the process that does."""
    folder: Any = session.config.getoption(_FACTS_OPTION)
    facts = session.config.stash[FACTS]
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_KEY] = facts.found
    elif folder:
        facts.write(Path(folder))
