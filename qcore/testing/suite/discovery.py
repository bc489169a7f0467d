"""Checks on how a backend is found, loaded and built."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import qcore
from qcore import hookspecs
from qcore.registry import BackendInfo
from qcore.testing.subject import Subject

__all__ = ["DiscoveryChecks"]

_LIST = """
import sys, qcore
qcore.backends()
heavy = {"torch", "torchao", sys.argv[1]}
print(",".join(sorted(heavy & set(sys.modules))))
"""


def _installed(subject: Subject) -> BackendInfo:
    info = qcore.backends().get(subject.name)
    assert info is not None, (
        f"no distribution provides the backend {subject.name!r}: give yours an entry point in the "
        f"group 'qcore.backends', as in {subject.name} = \"your_package:YourBackend\", and install "
        "it (pip install --editable .)"
    )
    return info


class DiscoveryChecks:
    """A backend is found by its name, costs nothing when listed, and keeps to the hooks."""

    def test_one_distribution_claims_the_name(self, subject: Subject) -> None:
        info = _installed(subject)
        assert not info.is_conflict, (
            f"{len(info.origins)} distributions claim the name {subject.name!r}: "
            f"{'; '.join(info.origins)}. Rename the backend, or uninstall all but one."
        )

    def test_listing_imports_nothing_heavy(self, subject: Subject) -> None:
        points = _installed(subject)._entry_points
        module = points[0].module if points else ""
        done = subprocess.run(
            [sys.executable, "-c", _LIST, module],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (
            f"{subject.name}: qcore.backends() fails in a fresh interpreter:\n{done.stderr}"
        )
        assert done.stdout.strip() == "", (
            f"{subject.name}: listing backends imports {done.stdout.strip()}: the distribution "
            "runs code when Python starts (a .pth file?). Let the entry point alone name the class."
        )

    def test_it_loads(self, subject: Subject) -> None:
        info = _installed(subject)
        with subject.step("loading the backend", "Import what may be missing inside the hooks."):
            cls = info.load()
        assert inspect.isclass(cls), f"{subject.name}: {cls!r} is not a class"

    def test_it_states_the_api_version(self, subject: Subject) -> None:
        with subject.step("loading the backend"):
            cls: Any = _installed(subject).load()
        assert cls.api_version == hookspecs.API_VERSION, (
            f"{subject.name}: api_version is {cls.api_version!r}; this qcore has hook API "
            f"{hookspecs.API_VERSION}"
        )

    def test_hooks_have_the_signatures_of_the_specification(self, subject: Subject) -> None:
        # The core checks them whenever a quantizer is built; what it says names the hook.
        subject.quantizer()

    def test_every_quantizer_has_a_backend_of_its_own(self, subject: Subject) -> None:
        first, second = subject.quantizer(), subject.quantizer()
        assert first.backend is not second.backend, (
            f"{subject.name}: two quantizers share one instance of the backend. Options belong to "
            "one quantizer: let the entry point name the class, and keep no instance."
        )

    def test_an_unknown_option_is_refused(self, subject: Subject) -> None:
        options = {**subject.requirements.options, "no_such_option": 1}
        subject.expect_refusal(
            "an unknown option of get_quantizer",
            lambda: qcore.get_quantizer(subject.name, **options),
            "no_such_option",
        )
