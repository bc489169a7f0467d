"""Discovery: a bad backend says what is wrong with it, and spoils no other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcore
from qcore import registry
from qcore.errors import (
    ApiVersionError,
    BackendConflictError,
    BackendHookError,
    BackendLoadError,
    QcoreWarning,
    UnknownBackendError,
)
from qcore.quantizer import Quantizer

BACKEND = textwrap.dedent(
    """
    import qcore
    from qcore.report import AnnotationReport
    from qcore.schemes import QuantizationScheme

    class Backend:
        api_version = 2
        def __init__(self, target="u55"):
            self.target = target
        @qcore.hookimpl
        def supported_schemes(self):
            return [QuantizationScheme()]
        @qcore.hookimpl
        def annotate(self, model, plan):
            return AnnotationReport("good")
        @qcore.hookimpl
        def lower(self, program, options):
            return None
    """
)


@pytest.fixture
def good(install: Callable[..., None]) -> Callable[..., None]:
    """Installs a good backend beside whatever the test installs."""
    install("good-dist", "good_backend", BACKEND, good="good_backend:Backend")
    return install


def assert_good_still_works() -> None:
    assert isinstance(qcore.get_quantizer("good"), Quantizer)


def test_an_installed_backend_is_listed_and_loaded(good: Callable[..., None]) -> None:
    assert qcore.backends()["good"].origins == ("good-dist 1.0 (good_backend:Backend)",)
    assert_good_still_works()


def test_options_reach_the_backend_and_belong_to_one_quantizer(good: Callable[..., None]) -> None:
    first = qcore.get_quantizer("good", target="u85")
    second = qcore.get_quantizer("good")
    assert (first.backend.target, second.backend.target) == ("u85", "u55")  # type: ignore[attr-defined]


def test_an_unknown_name_lists_what_is_installed_and_a_near_miss(good: Callable[..., None]) -> None:
    with pytest.raises(UnknownBackendError, match=r"(?s)'god'.*Did you mean 'good'.*Installed: "):
        qcore.get_quantizer("god")


def test_a_name_that_is_no_string_is_an_error() -> None:
    with pytest.raises(UnknownBackendError, match="chosen by its name, got None"):
        qcore.get_quantizer(None)  # type: ignore[arg-type]


def test_without_any_backend_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "backends", dict)
    with pytest.raises(UnknownBackendError, match="none is installed.*pip install qcore-vgf"):
        qcore.get_quantizer("vgf")


def test_an_unknown_option_names_the_options(good: Callable[..., None]) -> None:
    with pytest.raises(BackendLoadError, match=r"no option 'tagret'. Did you mean 'target'\?"):
        qcore.get_quantizer("good", tagret="u85")


def test_a_missing_option_is_named(good: Callable[..., None]) -> None:
    source = BACKEND.replace('target="u55"', "target")
    good("needy-dist", "needy_backend", source, needy="needy_backend:Backend")
    with pytest.raises(BackendLoadError, match=r"needs the option 'target': .*target=\.\.\."):
        qcore.get_quantizer("needy")


def test_a_broken_import_keeps_its_cause_and_spoils_no_other(good: Callable[..., None]) -> None:
    good("broken-dist", "broken_backend", "import no_such_thing", broken="broken_backend:Backend")
    with pytest.raises(BackendLoadError, match="broken-dist 1.0.*No module named") as caught:
        qcore.get_quantizer("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert set(qcore.backends()) >= {"broken", "good"}
    assert_good_still_works()


def test_two_distributions_with_one_name_are_a_conflict(good: Callable[..., None]) -> None:
    good("twin-a", "twin_a", BACKEND, twin="twin_a:Backend")
    good("twin-b", "twin_b", BACKEND, twin="twin_b:Backend")
    assert qcore.backends()["twin"].is_conflict
    with pytest.raises(BackendConflictError, match=r"twin-a 1.0.*twin-b 1.0|twin-b 1.0.*twin-a"):
        qcore.get_quantizer("twin")
    assert_good_still_works()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("api_version = 2", "api_version = 7"), "has api_version 7; this qcore has hook API 2"),
        (("api_version = 2", "pass"), "does not state api_version"),
    ],
)
def test_a_backend_for_another_api_is_refused(
    good: Callable[..., None], change: tuple[str, str], says: str
) -> None:
    good("old-dist", "old_backend", BACKEND.replace(*change), old="old_backend:Backend")
    with pytest.raises(ApiVersionError, match=says):
        qcore.get_quantizer("old")
    assert_good_still_works()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("def annotate(", "def anotate("), "anotate is no hook of qcore. Did you mean 'annotate'"),
        (("model, plan)", "model, plan=None)"), "annotate gives plan a default"),
        (("model, plan)", "model, plans)"), "breaks the hook contract"),
        (
            ("program, options)", "program, **options)"),
            r"lower takes \*\*options, which stays empty",
        ),
        (
            (
                "@qcore.hookimpl\n    def annotate",
                "def validate_partial(self, model):\n"
                "        return []\n    @qcore.hookimpl\n    def annotate",
            ),
            "validate_partial has the name of a hook and is not marked",
        ),
        (("@qcore.hookimpl\n    def lower", "def lowering"), "does not implement lower"),
        (
            ("@qcore.hookimpl\n    def lower", "def lower"),
            "lower has the name of a hook and is not",
        ),
    ],
)
def test_a_hook_that_breaks_the_contract_is_named(
    good: Callable[..., None], change: tuple[str, str], says: str
) -> None:
    assert change[0] in BACKEND
    good("bad-dist", "bad_backend", BACKEND.replace(*change), bad="bad_backend:Backend")
    with pytest.raises(BackendLoadError, match=says):
        qcore.get_quantizer("bad")
    assert_good_still_works()


def test_an_entry_point_that_names_an_instance_is_refused(good: Callable[..., None]) -> None:
    source = BACKEND + "\nINSTANCE = Backend()\n"
    good("instance-dist", "instance_backend", source, inst="instance_backend:INSTANCE")
    with pytest.raises(BackendLoadError, match="not a class. Name the backend's class"):
        qcore.get_quantizer("inst")


def test_a_class_where_an_instance_is_due_is_refused(toy_backend: type) -> None:
    with pytest.raises(BackendLoadError, match=r"got the class ToyBackend.*an instance is due"):
        Quantizer(toy_backend, name="toy")


def test_registering_in_process_takes_precedence_and_can_be_undone(
    good: Callable[..., None], toy_backend: type
) -> None:
    qcore.register_backend("good", toy_backend)
    try:
        assert type(qcore.get_quantizer("good").backend) is toy_backend
    finally:
        registry.unregister_backend("good")
    assert type(qcore.get_quantizer("good").backend) is not toy_backend


def test_unregistering_what_was_not_registered_is_an_error() -> None:
    with pytest.raises(UnknownBackendError, match="was not registered"):
        registry.unregister_backend("nothing")


@pytest.mark.parametrize(
    ("hook", "returned", "says"),
    [
        ("supported_schemes", [], "must return at least one"),
        ("supported_schemes", ["8a8w"], "must return at least one"),
        ("supported_schemes", None, "'supported_schemes' returned NoneType"),
    ],
)
def test_schemes_that_are_none_are_refused(
    toy_backend: type, hook: str, returned: Any, says: str
) -> None:
    broken = type("Broken", (toy_backend,), {hook: qcore.hookimpl(lambda self: returned)})
    with pytest.raises(BackendHookError, match=says):
        Quantizer(broken(), name="broken")


EXTENSION = "import qcore\nclass Extension:\n    @qcore.hookimpl(wrapper=True)\n"


def test_an_extension_wraps_a_hook_of_every_backend(good: Callable[..., None]) -> None:
    source = EXTENSION + "    def supported_schemes(self):\n        return (yield) * 2\n"
    good("ext-dist", "ext", source, group="qcore.extensions", twice="ext:Extension")
    assert len(qcore.get_quantizer("good").supported_schemes) == 2


def test_a_broken_extension_warns_once_and_is_skipped(good: Callable[..., None]) -> None:
    good("ext-dist", "bad_ext", "1/0", group="qcore.extensions", broken="bad_ext:Extension")
    with pytest.warns(QcoreWarning, match="'broken' of ext-dist 1.0 .*ZeroDivisionError") as seen:
        assert_good_still_works()
        assert_good_still_works()
    assert len(seen) == 1


def test_an_extension_that_misspells_a_hook_is_skipped(good: Callable[..., None]) -> None:
    source = EXTENSION + "    def anotate(self):\n        return (yield)\n"
    good("ext-dist", "odd_ext", source, group="qcore.extensions", odd="odd_ext:Extension")
    with pytest.warns(QcoreWarning, match="'odd' of ext-dist 1.0 .* is skipped.*anotate"):
        assert_good_still_works()


@pytest.mark.slow
def test_a_really_installed_bad_distribution_spoils_nothing(tmp_path: Path) -> None:
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        textwrap.dedent(
            """
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "qcore-really-bad"
            version = "0.1"
            [project.entry-points."qcore.backends"]
            really-bad = "really_bad:Backend"
            [tool.setuptools]
            py-modules = ["really_bad"]
            """
        )
    )
    (project / "really_bad.py").write_text("raise RuntimeError('the device library is missing')")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, project], check=True, capture_output=True)
    code = textwrap.dedent(
        """
        import qcore
        assert "really-bad" in qcore.backends()
        try:
            qcore.get_quantizer("really-bad")
        except qcore.QcoreError as error:
            print(type(error).__name__, error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "BackendLoadError Backend 'really-bad' of qcore-really-bad 0.1" in done.stdout
    assert "the device library is missing" in done.stdout


def test_what_is_installed_while_a_process_runs_is_found(install: Callable[..., None]) -> None:
    assert "late" not in qcore.backends()
    install("qcore-early", "early_module", "", early="early_module:Backend")
    assert "early" in qcore.backends()
    install("qcore-late", "late_module", "", late="late_module:Backend")
    assert {"early", "late"} <= set(qcore.backends())
