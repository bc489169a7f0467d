"""Each of many defects, planted in the two examples, is caught by a check that names it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qcore
from qcore import registry
from qcore_integer.backend import IntegerBackend
from qcore_portable import PortableBackend

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tools")]

import mutants_page  # noqa: E402
from mutants import DEFECTS, Calls, calls, computed  # noqa: E402

INTACT: dict[str, type] = {"portable": PortableBackend, "integer": computed.IntactBackend}


@pytest.fixture
def plant(install: Callable[..., None]) -> Iterator[Callable[[type], str]]:
    """Registers a backend under the name of the one it is made of, for one test."""
    planted = []

    def go(backend: Any) -> str:
        name: str = backend.name
        if issubclass(backend, IntegerBackend):
            point = "qcore_integer.artifact:QINT"
            install("qcore-qint", "qint_only", "", group="qcore.artifacts", qint=point)
        qcore.register_backend(name, backend)
        planted.append(name)
        return name

    yield go
    for name in planted:
        registry.unregister_backend(name)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_caught_and_named(name: str, plant: Callable[[type], str]) -> None:
    defect = DEFECTS[name]
    backend = plant(defect.backend)
    with pytest.raises(AssertionError) as caught:
        defect.check(backend)
    assert re.search(defect.says, str(caught.value), re.DOTALL), caught.value


# Those of one operator alone are in the conformance suites of the examples.
PASSING = sorted(
    {(d.base, d.check.name): d.check for d in DEFECTS.values() if d.base == "integer"}.items(),
    key=lambda item: item[0],
)


@pytest.mark.parametrize("check", [c for _, c in PASSING], ids=lambda check: check.name)
def test_what_catches_defects_passes_without_them(
    check: Calls, plant: Callable[[type], str]
) -> None:
    check(plant(INTACT["integer"]))


def test_there_are_many_defects_in_two_backends() -> None:
    count = {base: sum(d.base == base for d in DEFECTS.values()) for base in INTACT}
    assert sum(count.values()) >= 80
    assert min(count.values()) >= 30


def test_the_page_of_defects_is_current() -> None:
    assert mutants_page.main(["--check"]) == 0


# What is wrong before a class is there.

SOURCE = """
import qcore_portable

class Backend(qcore_portable.PortableBackend):
    pass
"""

LOADS = calls("it_loads")

DISTRIBUTIONS: dict[str, tuple[str, Calls, str]] = {
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


def caught(check: Calls, says: str) -> bool:
    with pytest.raises(AssertionError) as failure:
        check("planted")
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
