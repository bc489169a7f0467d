"""The suite itself: options, expected failures, and what it says when it cannot start."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qcore import registry
from qcore.testing import ZOO
from qcore.testing.subject import fresh_graph

pytest_plugins = ["pytester"]

TESTS = """
from qcore.testing import BackendConformance, Requirements

class TestConformance(BackendConformance):
    backend = "{backend}"
    requirements = Requirements({flags})
    expected_failures = {expected}
"""

CONFTEST = """
import qcore, qcore_portable

class Lying(qcore_portable.PortableBackend):
    @qcore.hookimpl
    def transform_for_annotation(self, model, plan):
        raise RuntimeError("the library is missing")

class Sourceless(qcore_portable.PortableBackend):
    @qcore.hookimpl
    def supported_schemes(self):
        return qcore_portable.SCHEMES[:1]

qcore.register_backend("sourceless", Sourceless)
qcore.register_backend("portable", qcore_portable.PortableBackend)
qcore.register_backend("broken", Lying)
"""


@pytest.fixture(scope="module", autouse=True)
def _torch_is_loaded() -> None:
    """Load what can be loaded only once: a pytester unloads what came while it lived."""
    fresh_graph(ZOO["cond"])
    importlib.import_module("executorch.exir.passes.executorch_prim_ops_registry")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Iterator[Any]:
    source = Path(__file__).parents[2] / "examples" / "qcore_portable" / "src"
    pytester.syspathinsert(source)
    pytester.makeconftest(CONFTEST)

    def go(
        *arguments: str,
        backend: str = "portable",
        flags: str = "delegates=False",
        expected: str = "{}",
    ) -> pytest.RunResult:
        made = TESTS.format(backend=backend, flags=flags, expected=expected)
        pytester.makepyfile(test_it=made)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    yield go
    for name in ("portable", "broken", "sourceless"):
        if name in registry._registered:
            registry.unregister_backend(name)


def test_a_check_that_fails_as_expected_is_no_failure(run) -> None:
    done = run(
        "-k", "pt2e_flow and linear", backend="broken", expected='{"pt2e_flow": "no library"}'
    )
    done.assert_outcomes(xfailed=2)


def test_an_expected_failure_may_name_one_parameter(run) -> None:
    done = run(
        "-k", "pt2e_flow and linear", backend="broken", expected='{"pt2e_flow[linear]": "no"}'
    )
    done.assert_outcomes(xfailed=1, failed=1)


def test_an_expected_failure_that_passes_is_a_failure(run) -> None:
    done = run("-k", "it_loads", expected='{"it_loads": "not yet"}')
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines("*XPASS(strict)*not yet*")


def test_no_check_of_programs_passes_for_a_backend_that_lowers_nothing(run) -> None:
    done = run("-k", "lower or program or delegated", "-rs", flags="lowers=False")
    outcomes = done.parseoutcomes()
    # What is asked instead: that lower() refuses, which this backend does not.
    assert outcomes.get("passed", 0) == 0
    assert outcomes["failed"] == 1
    assert outcomes["skipped"] > 10
    done.stdout.fnmatch_lines("*not asked of portable: it states lowers=False*")


def test_models_of_varying_sizes_are_not_asked_of_a_backend_of_fixed_sizes(run) -> None:
    flags = "delegates=False, dynamic_shapes=False"
    result = run("-rs", "-k", "test_pt2e_flow and dynamic_batch", flags=flags)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*not asked of portable: it states dynamic_shapes=False*"])


def test_without_schemes_of_a_kind_their_checks_say_so(run) -> None:
    done = run("-k", "source_scheme", "-rs", backend="sourceless")
    done.stdout.fnmatch_lines("*not asked: no source_schemes are declared*")


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ('{"pt2e_flaw": "why"}', "*there is no such check. Did you mean pt2e_flow*"),
        ('{"pt2e_flow": " "}', "*expected_failures gives no reason for 'pt2e_flow'*"),
    ],
)
def test_expected_failures_are_checked(run, expected: str, says: str) -> None:
    done = run("-k", "names_and_reasons", expected=expected)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(says)


def test_a_failure_names_the_step_and_keeps_the_cause(run) -> None:
    done = run("-k", "every_compute_node and linear", backend="broken")
    done.stdout.fnmatch_lines(
        "*broken: transform_for_annotation of linear, 8a8w static per-channel raised RuntimeError: "
        "the library is missing (raised in the hook 'transform_for_annotation' of backend 'broken')"
    )


def test_the_command_runs_the_suite_for_a_name(pytester: pytest.Pytester, run) -> None:
    command = ("--pyargs", "qcore.testing", "--qcore-backend", "nothing", "-k", "distribution")
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", *command)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines("*no distribution provides the backend 'nothing'*")


def test_a_backend_that_is_not_installed_is_told_once(run) -> None:
    done = run("-k", "it_loads or every_compute_node", backend="forgotten", flags="")
    outcomes = done.parseoutcomes()
    assert (outcomes["failed"], outcomes["skipped"]) == (1, 17)
    done.stdout.fnmatch_lines(
        [
            "*no distribution provides the backend 'forgotten'*",
            "forgotten is not shown to conform*",
            "*17 skipped: not asked of forgotten: it does not load, and another check says why",
        ]
    )


def test_without_a_name_it_says_how_to_give_one(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_inprocess("--pyargs", "qcore.testing", "-k", "it_loads")
    assert done.ret != 0
    done.stdout.fnmatch_lines("*names no backend. Write backend = 'yours'*--qcore-backend yours*")


def test_a_certificate_says_what_was_shown(run, tmp_path: Path) -> None:
    path = tmp_path / "certificates" / "portable.json"
    done = run(
        "-k",
        "declared_scheme_is_executed or it_loads or says_what_is_missing",
        "--qcore-certificate",
        str(path),
    )
    found = json.loads(path.read_text())["portable"]
    assert found["conforms"] is False  # Not everything was asked.
    assert found["failed"] == []
    assert found["facts"]["scheme"]["8a8w static per-channel"] == "converts"
    assert found["skipped"] == {
        "not asked of portable: it states lowers=True": ["lower_says_what_is_missing"]
    }
    done.stdout.fnmatch_lines(
        [
            "portable is not shown to conform to hook API 2",
            "*passed, 1 skipped",
            "*8a8w static per-channel: converts",
            "*1 skipped: not asked of portable: it states lowers=True",
        ]
    )


# What a suite is to the plugin, without a backend to load in each worker.
SHARED_OUT = """
import pytest
from qcore.testing.plugin import FINDINGS

class TestConformance:
    backend, make_subject = "shared", None

    @pytest.mark.parametrize("model", "abcd")
    def test_model(self, model, request):
        request.config.stash[FINDINGS].recorder("shared")("executed with 8a8w", model, "runs")

    def test_more(self):
        pytest.skip("not asked")
"""


def test_workers_together_have_one_certificate(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # Others take seconds to import.
    plugins = ("-p", "xdist", "-p", "qcore.testing.plugin")
    pytester.makepyfile(test_it=SHARED_OUT)
    path = tmp_path / "shared.json"
    done = pytester.runpytest_subprocess(*plugins, "-n", "2", "--qcore-certificate", str(path))
    done.stdout.fnmatch_lines(
        [
            "shared conforms to hook API 2",
            "*4 passed, 1 skipped",
            "*4 models with 8a8w: a; b; c; d",
            "*1 skipped: not asked",
        ]
    )
    assert json.loads(path.read_text())["shared"]["conforms"] is True


def test_what_fails_is_on_the_certificate(run, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    expected = '{"pt2e_flow": "no library"}'
    run(
        *(
            "-k",
            "(every_compute_node or pt2e_flow) and depthwise",
            "--qcore-certificate",
            str(path),
        ),
        backend="broken",
        expected=expected,
    )
    found = json.loads(path.read_text())["broken"]
    assert found["failed"] == ["every_compute_node_has_a_decision[depthwise]"]
    assert found["checks"] == {"failed": 1, "failed as expected": 1}


def test_what_is_left_out_to_be_quick_is_skipped_with_that_reason(run) -> None:
    done = run("-k", "every_compute_node", "--qcore-quick")
    outcomes = done.parseoutcomes()
    assert outcomes["passed"] == 4
    assert outcomes["skipped"] == 13
    done.stdout.fnmatch_lines("*13 skipped: left out by --qcore-quick")


def test_a_flag_that_turned_checks_off_says_what_to_write_instead(run) -> None:
    done = run("-k", "it_loads", flags="changes_ranges=True")
    assert done.ret != 0
    done.stdout.fnmatch_lines("*changes_ranges is True: it says what changes*aten.tanh.default*")
