"""Loads one distribution's plugins, runs its checks; prints what is wrong, and facts, as JSON."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Any

import attrs

import qcore
from qcore.errors import QcoreError
from qcore.testing import Requirements
from qcore_analysis.doctor import CHECKS, BackendFacts


def main(distribution: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return (problem, fix) pairs, where an empty fix leaves it to the caller, and the facts."""
    found: list[Any] = []
    facts: list[dict[str, Any]] = []
    for point in metadata.distribution(distribution).entry_points:
        if not point.group.startswith("qcore."):
            continue
        try:
            if point.group == "qcore.backends":
                if not qcore.backends()[point.name].is_conflict:  # The doctor has said so.
                    facts.append(attrs.asdict(_facts(point.name, distribution)))
                continue
            loaded = point.load()
            if point.group == CHECKS:
                found += [list(pair) for pair in loaded()]
        except Exception as error:
            kind = "" if isinstance(error, QcoreError) else f"{type(error).__name__}: "
            found.append([f"{point.group} {point.name}: {kind}{error}", ""])
    return found, facts


def _facts(name: str, distribution: str) -> BackendFacts:
    """Build a backend, which checks its hooks, and return what it says of itself."""
    backend_class: Any = qcore.backends()[name].load()
    stated = Requirements.declared_by(name)
    quantizer = qcore.get_quantizer(name, **stated.options)
    marker = f"{qcore.hookimpl.project_name}_impl"
    fields = attrs.fields(backend_class) if attrs.has(backend_class) else ()
    return BackendFacts(
        name,
        distribution,
        backend_class.api_version,
        tuple(h for h in dir(backend_class) if hasattr(getattr(backend_class, h), marker)),
        len(quantizer.supported_schemes),
        sum(scheme.is_qat for scheme in quantizer.supported_schemes),
        len(quantizer.source_schemes),
        tuple(field.alias for field in fields if field.init),
        stated.partial,
        stated.runs,
        stated.verifies,
        stated.dynamic_shapes,
    )


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1])))
