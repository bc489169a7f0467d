"""Loads the plugins of one distribution, runs its checks, prints what is wrong as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import importlib_metadata

import qcore
from qcore.errors import QcoreError
from qcore_analysis.doctor import CHECKS


def main(distribution: str) -> list[Any]:
    """Return (problem, fix) pairs; an empty fix leaves it to the caller."""
    found: list[Any] = []
    for point in importlib_metadata.distribution(distribution).entry_points:
        if not point.group.startswith("qcore."):
            continue
        try:
            found += _wrong(point)
        except Exception as error:
            kind = "" if isinstance(error, QcoreError) else f"{type(error).__name__}: "
            found.append([f"{point.group} {point.name}: {kind}{error}", ""])
    return found


def _wrong(point: importlib_metadata.EntryPoint) -> list[list[str]]:
    """Load what an entry point names; build a backend of it, or run it where it is a check."""
    if point.group == "qcore.backends":
        info = qcore.backends()[point.name]
        if not info.is_conflict:  # The doctor has said so.
            options = getattr(info.load(), "conformance", {}).get("options", {})
            qcore.get_quantizer(point.name, **options)
        return []
    loaded = point.load()
    return [list(pair) for pair in loaded()] if point.group == CHECKS else []


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1])))
