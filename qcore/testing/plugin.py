"""pytest plugin: ``--qcore-backend`` names the backend that ``qcore.testing`` is run for.

pytest loads this module in every environment that has qcore: it imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FACTS", "OPTION", "Facts"]

OPTION = "--qcore-backend"
_FACTS_OPTION = "--qcore-facts"


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the facts where they were asked for."""
    folder: Any = session.config.getoption(_FACTS_OPTION)
    if folder:
        session.config.stash[FACTS].write(Path(folder))
