"""Finding Vulkan, and saying what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcore.errors import RuntimeUnavailableError
from qcore_vgf import vulkan
from qcore_vgf.runner import VgfRunner
from qcore_vgf.vulkan import Emulation, find_device, vulkan_environment

NATIVE = ["VK_ARM_data_graph", "VK_ARM_tensors"]


@pytest.fixture(autouse=True)
def _searched_anew():
    vulkan._find_device.cache_clear()
    yield
    vulkan._find_device.cache_clear()


def answer_probe(monkeypatch, *answers):
    """Answer for machines that this one is not: the real probe is what the other tests run."""
    left = list(answers)
    monkeypatch.setattr(vulkan, "_probe", lambda env: left.pop(0) if len(left) > 1 else left[0])


def device(*extensions: str, name: str = "GPU", driver: str = "driver 1") -> dict[str, object]:
    return {"name": name, "driver": driver, "extensions": list(extensions)}


def machine(*devices: dict[str, object]) -> dict[str, object]:
    return {"loader": True, "error": "", "devices": list(devices)}


def test_the_device_here_executes_vgf_programs():
    found = find_device()
    first = vulkan._probe(vulkan_environment())["devices"][0]
    assert first["name"] == found.name
    assert set(NATIVE) <= set(first["extensions"])


def test_the_graph_layer_is_found_before_the_tensor_layer(tmp_path):
    emulation = Emulation.find()
    assert emulation is not None
    env = emulation.write_manifests(tmp_path)
    layers = [
        json.loads(next(Path(folder).iterdir()).read_text())["layer"]
        for folder in env["VK_LAYER_PATH"].split(":")[:2]
    ]
    assert [layer["name"] for layer in layers] == env["VK_INSTANCE_LAYERS"].split(":")[-2:]
    assert [Path(layer["library_path"]).name for layer in layers] == [
        "libVkLayer_Graph.so",
        "libVkLayer_Tensor.so",
    ]
    assert all(Path(layer["library_path"]).is_file() for layer in layers)


def test_a_device_with_arms_extensions_is_used_without_layers(monkeypatch):
    answer_probe(monkeypatch, machine(device(*NATIVE)))
    assert not find_device().emulated
    assert vulkan_environment() == {}
    assert VgfRunner().emulation == ""


def test_sessions_share_an_environment_and_so_the_process_that_they_are_forked_from():
    assert vulkan_environment() == vulkan_environment() != {}


def test_a_device_that_is_not_the_first_is_made_the_first(monkeypatch, tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path))
    both = machine(device(name="other"), device(*NATIVE))
    answer_probe(monkeypatch, both, machine(device(name="other")), machine(device(*NATIVE)))
    assert find_device().manifest == tmp_path / "b.json"


def test_without_a_loader_the_message_names_the_packages(monkeypatch):
    answer_probe(monkeypatch, {"loader": False, "error": "", "devices": []})
    with pytest.raises(RuntimeUnavailableError, match=r"libvulkan1.*system-deps.*reference=True"):
        find_device()


def test_without_a_driver_the_message_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path))
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    with pytest.raises(RuntimeUnavailableError, match=r"llvmpipe.*mesa-vulkan-drivers 25.0"):
        find_device()


def test_a_driver_that_is_too_old_is_named_with_what_it_lacks(monkeypatch):
    old = machine(device("VK_KHR_maintenance4", driver="Mesa 22.3.6"))
    answer_probe(monkeypatch, old)
    with pytest.raises(RuntimeUnavailableError, match=r"VK_KHR_maintenance5.*Mesa 22.3.6, lacks"):
        find_device()


def test_a_driver_for_another_architecture_is_passed_over(monkeypatch, tmp_path):
    real = find_device().manifest
    other = tmp_path / "lvp_icd.i686.json"
    other.write_text('{"file_format_version": "1.0.0", "ICD": {"library_path": "/none.so"}}')
    monkeypatch.setenv("VK_DRIVER_FILES", f"{other}:{real}")
    assert find_device().manifest == real


def test_a_driver_that_hangs_is_an_error_and_no_hang(monkeypatch):
    monkeypatch.setattr(vulkan, "_PROBE_TIMEOUT_S", 0.001)
    with pytest.raises(RuntimeUnavailableError, match=r"did not answer within.*reference=True"):
        find_device()


def test_layers_that_are_not_installed_are_asked_for(monkeypatch):
    monkeypatch.setattr(Emulation, "find", classmethod(lambda cls: None))
    with pytest.raises(RuntimeUnavailableError, match=r'pip install "executorch\[vgf\]"'):
        find_device()


def test_a_driver_that_crashes_is_an_error_and_no_crash(monkeypatch, tmp_path):
    broken = tmp_path / "lvp_icd.json"
    broken.write_text('{"file_format_version": "1.0.0", "ICD": {"library_path": "/none.so"}}')
    monkeypatch.setenv("VK_DRIVER_FILES", str(broken))
    with pytest.raises(RuntimeUnavailableError, match=r"does not start.*reference=True"):
        find_device()
