"""What a run of the suite has shown of each backend: printed at its end, and as a file to ship."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

__all__ = ["SUITE_VERSION", "Findings"]

#: Counts up when the suite asks more than before.
SUITE_VERSION: Final = 2

_EXECUTED: Final = "executed with "


class Findings:
    """What the checks have found out about backends.

    Attributes:
        facts: By backend, by kind of fact, by key: the last value that a passing check recorded.
        outcomes: By backend, by check: how it ended, and the reason where there is one.
        whole: Whether every check was asked: none deselected, none left out to be quick.
    """

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, dict[str, str]]] = {}
        self.outcomes: dict[str, dict[str, tuple[str, str]]] = {}
        self.whole = True

    def recorder(self, backend: str) -> Callable[[str, str, str], None]:
        """Return a function that records facts about a backend.

        Args:
            backend: Its name.

        Returns:
            A function of kind, key and value.
        """

        def record(kind: str, key: str, value: str) -> None:
            self.facts.setdefault(backend, {}).setdefault(kind, {})[key] = value

        return record

    def merge(self, facts: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
        """Take in the facts that another process has found out.

        Args:
            facts: By backend, by kind, by key.
        """
        for backend, kinds in facts.items():
            record = self.recorder(backend)
            for kind, found in kinds.items():
                for key, value in found.items():
                    record(kind, key, value)

    def certificates(self) -> dict[str, dict[str, Any]]:
        """Return a certificate of each backend, as data."""
        return {backend: self._certificate(backend) for backend in sorted(self.outcomes)}

    def write(self, folder: Path) -> None:
        """Write the certificate of each backend to a JSON file of its name.

        Args:
            folder: Where to; made if need be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for backend, certificate in self.certificates().items():
            _write(folder / f"{backend}.json", certificate)

    def write_one(self, path: Path) -> None:
        """Write the certificates to one JSON file, by backend.

        Args:
            path: The file; its folder is made if need be.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, self.certificates())

    def lines(self) -> Iterator[str]:
        """Yield the certificates as text."""
        for backend, found in self.certificates().items():
            said = "conforms" if found["conforms"] else "is not shown to conform"
            yield f"{backend} {said} to hook API {found['hook_api']}"
            counted = ", ".join(f"{number} {how}" for how, number in found["checks"].items())
            yield f"  suite {found['suite']} of qcore {found['qcore']}: {counted}"
            facts = found["facts"]
            schemes = {**facts.get("scheme", {}), **facts.get("program of a scheme", {})}
            for scheme, evidence in sorted(schemes.items()):
                yield f"  {scheme}: {evidence}"
            for kind, models in sorted(facts.items()):
                if kind.startswith(_EXECUTED):
                    name = kind.removeprefix(_EXECUTED)
                    yield f"  {len(models)} models with {name}: {'; '.join(sorted(models))}"
            for model, reason in sorted(facts.get("left out", {}).items()):
                yield f"  {model} left out: {reason}"
            for reason, checks in sorted(found["skipped"].items()):
                yield f"  {len(checks)} skipped: {reason}"

    def _certificate(self, backend: str) -> dict[str, Any]:
        from qcore.hookspecs import API_VERSION

        outcomes = self.outcomes[backend]
        skipped: dict[str, list[str]] = {}
        for check, (outcome, reason) in sorted(outcomes.items()):
            if outcome == "skipped":
                skipped.setdefault(reason, []).append(check)
        failed = sorted(check for check, (outcome, _) in outcomes.items() if outcome == "failed")
        return {
            "backend": backend,
            "hook_api": API_VERSION,
            "suite": SUITE_VERSION,
            "qcore": metadata.version("qcore-quant"),
            "conforms": self.whole and not failed,
            "checks": dict(sorted(Counter(outcome for outcome, _ in outcomes.values()).items())),
            "failed": failed,
            "skipped": skipped,
            "facts": self.facts.get(backend, {}),
        }


def _write(path: Path, data: Any) -> None:
    path.write_text(f"{json.dumps(data, indent=1, sort_keys=True)}\n", encoding="utf-8")
