"""The doctor: each kind of broken installation is found, and the command that mends it is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcore_analysis import doctor
from qcore_analysis.doctor import BROKEN, WARNING, Finding, diagnose

Plant = Callable[..., None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Puts a distribution, and a module of its name, where Python looks first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def put(name: str, version: str = "1.0", *lines: str, points: str = "", code: str = "") -> None:
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        metadata = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines)
        (info / "METADATA").write_text("\n".join(metadata) + "\n\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / f"{name}.py").write_text(code)

    return put


def only_finding(found: list[Finding] | tuple[Finding, ...], about: str) -> Finding:
    (one,) = (finding for finding in found if finding.about == about)
    return one


def test_what_is_installed_here_fits_together_but_for_the_runtime_that_has_no_vgf() -> None:
    found = diagnose(quick=True)
    assert {"torch", "torchao", "executorch", "ethos-u-vela"} <= set(found.versions)
    unfit = [] if found.versions["executorch"].startswith("1.4") else ["executorch"]
    assert [finding.about for finding in found.findings if finding.level == BROKEN] == unfit


def test_a_version_that_does_not_fit_is_found_below_what_is_ours(plant: Plant) -> None:
    plant("torch", "2.9.0")
    found = diagnose(quick=True)
    assert not found.ok
    finding = only_finding(found.findings, "torch")
    assert re.match("2.9.0 is installed, and .*qcore-quant needs <2.14,>=2.13", finding.problem)
    assert re.fullmatch("pip install 'torch<2.14,.*>=2.13.*'", finding.fix)


def test_the_extra_of_a_requirement_that_is_missing_is_found(plant: Plant) -> None:
    plant("npu", "1.0", "Requires-Dist: npu-sdk[tools]>=3", points="[qcore.backends]\nnpu = npu:N")
    plant("npu_sdk", "3.1", "Requires-Dist: npu-compiler; extra == 'tools'")
    finding = only_finding(diagnose(quick=True).findings, "npu-compiler")
    assert finding.problem == "it is not installed, and npu_sdk needs it"
    assert finding.fix == "pip install 'npu-compiler'"


def test_a_python_that_does_not_fit_is_found(plant: Plant) -> None:
    plant("npu", "1.0", "Requires-Python: >=3.99", points="[qcore.backends]\nnpu = npu:N")
    assert "needs Python >=3.99" in only_finding(diagnose(quick=True).findings, "npu").problem


def test_two_versions_in_one_folder_are_found(plant: Plant, tmp_path: Path) -> None:
    plant("npu", "1.0")
    plant("npu", "2.0")
    finding = only_finding(diagnose(quick=True).findings, "npu")
    assert "1.0 and 2.0 lie in one folder" in finding.problem
    assert finding.fix.endswith("pip install npu")


COMMIT = {"vcs": "git", "commit_id": "abc123"}


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ({"url": "file://HERE/p%20q", "dir_info": {}}, "'{}/p q'"),
        ({"url": "file://HERE/p%20q", "dir_info": {"editable": True}}, "--editable '{}/p q'"),
        (
            {"url": "file://HERE/qcore_npu-1-any.whl", "archive_info": {}},
            "--find-links {} qcore-npu",
        ),
        ({"url": "https://h/r", "vcs_info": COMMIT}, "'qcore-npu @ git+https://h/r@abc123'"),
        ({"url": "file://HERE/gone", "dir_info": {}}, "qcore-npu  # add --find-links FOLDER "),
    ],
    ids=["folder", "editable", "wheel", "repository", "gone"],
)
def test_what_is_installed_again_comes_from_where_it_came(
    plant: Plant, tmp_path: Path, place: dict[str, Any], arguments: str
) -> None:
    (tmp_path / "p q").mkdir()
    (tmp_path / "p q" / "pyproject.toml").touch()
    (tmp_path / "qcore_npu-1-any.whl").touch()
    plant("qcore_npu", "1.0")
    plant("qcore_npu", "2.0")
    text = json.dumps(place).replace("HERE", str(tmp_path))
    (tmp_path / "qcore_npu-1.0.dist-info" / "direct_url.json").write_text(text)
    fix = only_finding(diagnose(quick=True).findings, "qcore-npu").fix
    assert fix.rpartition(" && ")[2].startswith(f"pip install {arguments}".format(tmp_path))


def test_what_is_missing_beside_a_checkout_is_installed_from_there(plant: Plant) -> None:
    needs = "Requires-Dist: qcore-vulkan>=99"
    plant("npu", "1.0", needs, points="[qcore.backends]\nnpu = npu:N")
    fix = only_finding(diagnose(quick=True).findings, "qcore-vulkan").fix
    folder = Path(__file__).parents[2] / "qcore_vulkan"
    assert fix == f"pip install --editable {folder}"


def test_what_backends_say_of_themselves_is_told(in_json: Callable[..., Any]) -> None:
    found = diagnose(only=["qcore-ethosu"])
    (ethosu,) = found.backends
    assert (ethosu.name, ethosu.distribution) == ("ethosu", "qcore-ethosu")
    assert {"supported_schemes", "annotate", "validate_partial", "lower"} <= set(ethosu.hooks)
    assert "target" in ethosu.options
    assert (ethosu.partial, ethosu.runs, ethosu.dynamic_shapes) == (False, True, False)
    assert 0 < ethosu.training < ethosu.schemes
    status = int(not diagnose(quick=True).ok)
    assert in_json("doctor", "--quick", status=status)["backends"] == []


def test_a_name_that_two_distributions_claim_is_found(plant: Plant) -> None:
    plant("other", points="[qcore.backends]\nxnnpack = other:X")
    finding = only_finding(diagnose(quick=True).findings, "backend xnnpack")
    assert "several distributions claim it" in finding.problem
    assert finding.fix.startswith("pip uninstall ")


def test_a_full_disk_and_little_memory_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1)
    found = diagnose(quick=True)
    assert {(f.about, f.level) for f in found.findings} >= {("disk", WARNING), ("memory", WARNING)}


def test_a_folder_for_temporary_files_that_is_missing_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    assert only_finding(diagnose(quick=True).findings, "disk").level == BROKEN


CHECK = "def check():\n    {}"


@pytest.mark.parametrize(
    ("points", "code", "says"),
    [
        ("[qcore.backends]\nnpu = npu:Npu", "import npu_sdk", "cannot be imported.*'npu_sdk'"),
        ("[qcore.backends]\nnpu = npu:Npu", "class Npu: api_version = 0", "has api_version 0"),
        ("[qcore.backends]\nnpu = npu:Npu", "import os; os.abort()", "ends the process"),
        ("[qcore.backends]\nnpu = npu:Npu", "import time; time.sleep(60)", "not load within 1 s"),
        ("[qcore.extensions]\ntimer = npu:Timer", "", "qcore.extensions timer: .*Timer"),
        ("[qcore.commands]\ntune = npu:tune", "1 / 0", "qcore.commands tune: ZeroDivisionError"),
        ("[qcore.doctor]\nnpu = npu:check", CHECK.format("yield 'no driver', 'fix'"), "no driver"),
        ("[qcore.doctor]\nnpu = npu:check", CHECK.format("yield 1 / 0"), "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_does_not_load_is_found_and_spoils_no_other(
    plant: Plant, points: str, code: str, says: str
) -> None:
    plant("npu", points=points, code=code)
    found = diagnose(only=["npu"], timeout_s=1 if "sleep" in code else 60)
    assert found.checked == ("npu",)
    finding = only_finding(found.findings, "npu")
    assert finding.level == BROKEN
    assert re.search(says, finding.problem, re.DOTALL), finding
    assert finding.fix in ("fix", "pip install --force-reinstall npu")


def test_a_missing_driver_is_a_warning_and_a_wrong_converter_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcore_vgf.doctor import check

    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    monkeypatch.setenv("MODEL_CONVERTER_PATH", str(tmp_path / "none"))
    *_, converter, driver = check()  # Before them: a version without a runtime.
    assert converter[1] == "unset MODEL_CONVERTER_PATH"
    assert driver[1:] == ("apt-get install libvulkan1 mesa-vulkan-drivers", "warning")


def test_a_runtime_without_a_delegate_is_found() -> None:
    from qcore_executorch.doctor import REINSTALL, check, delegate_is_registered

    assert list(check()) == []
    assert list(delegate_is_registered("XnnpackBackend")) == []
    ((problem, fix),) = delegate_is_registered("NpuBackend")
    assert "the runtime has no NpuBackend, only " in problem
    assert fix == REINSTALL


def test_the_command_answers_with_its_exit_status(
    plant: Plant, qcore: Any, in_json: Callable[..., Any]
) -> None:
    plant("torchao", "0.1")
    found = in_json("doctor", "--quick", status=1)
    assert not found["ok"]
    fixes = {finding["about"]: finding["fix"] for finding in found["findings"]}
    assert fixes["torchao"].startswith("pip install 'torchao<0.19,>=0.18")
    done = qcore("doctor", "qcore-npu")
    assert done.exit_code == 1
    assert "No distribution 'qcore-npu'" in done.stderr
