"""Finding a Vulkan driver that executes VGF programs, or what emulates one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs

from qcore.errors import RuntimeUnavailableError

__all__ = ["Emulation", "VulkanDevice", "find_device", "vulkan_environment"]

_NATIVE: Final = ("VK_ARM_data_graph", "VK_ARM_tensors")
# What the emulation layers build on; Mesa's llvmpipe has all of it from 25.0 on.
_EMULATION_NEEDS: Final = (
    "VK_EXT_shader_replicated_composites",
    "VK_KHR_deferred_host_operations",
    "VK_KHR_maintenance5",
)
# From the application down: the graph layer calls the tensor layer.
_LAYERS: Final = ("Graph", "Tensor")
_LLVMPIPE: Final = "lvp_icd*.json"
_PROBE_TIMEOUT_S: Final = 60
# What the loader reads and what decides where it looks.
_VARIABLES: Final = (
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_LAYER_PATH",
    "VK_INSTANCE_LAYERS",
    "LD_LIBRARY_PATH",
    "XDG_CONFIG_HOME",
    "XDG_CONFIG_DIRS",
    "XDG_DATA_HOME",
    "XDG_DATA_DIRS",
    "HOME",
)
_WITHOUT_VULKAN: Final = (
    "Without Vulkan, program.run(*inputs, reference=True) executes the same TOSA graphs on Arm's "
    "reference model."
)


@attrs.frozen
class VulkanDevice:
    """A Vulkan device that executes VGF programs.

    Attributes:
        name: The device, as its driver names it.
        driver: The driver's own words about its version.
        manifest: The driver's manifest; None where the loader's own choice is the device.
        emulated: Whether Arm's emulation layers are needed on top of the driver.
    """

    name: str
    driver: str
    manifest: Path | None
    emulated: bool

    def __str__(self) -> str:
        layers = ", under Arm's ML emulation layers for Vulkan" if self.emulated else ""
        return f"{self.name}, {self.driver}{layers}"


@attrs.frozen
class Emulation:
    """Arm's ML emulation layers for Vulkan, as their Python package installs them.

    Attributes:
        libraries: The folder of their libraries.
        manifests: The folder of their manifests.
    """

    libraries: Path
    manifests: Path

    @classmethod
    def find(cls) -> Emulation | None:
        """Return the installed layers; None where the package is missing."""
        spec = importlib.util.find_spec("emulation_layer")
        if spec is None or spec.origin is None:
            return None
        deploy = Path(spec.origin).parent / "deploy"
        return cls(deploy / "lib", deploy / "share" / "vulkan" / "explicit_layer.d")

    def write_manifests(self, folder: Path) -> dict[str, str]:
        """Write manifests that the loader finds in the order the layers need.

        The loader orders layers by the folders it finds them in, whatever order they are asked
        for in; each manifest gets a folder of its own, with the library's full path in it.

        Args:
            folder: Where they go, which has to outlive the process.

        Returns:
            The environment variables that switch the layers on.
        """
        folders, names = [], []
        for layer in _LAYERS:
            source = self.manifests / f"VkLayer_{layer}.json"
            manifest = json.loads(source.read_text(encoding="utf-8"))
            library = self.libraries / Path(manifest["layer"]["library_path"]).name
            manifest["layer"]["library_path"] = str(library)
            own = folder / layer
            own.mkdir(exist_ok=True)
            (own / source.name).write_text(json.dumps(manifest), encoding="utf-8")
            folders.append(str(own))
            names.append(manifest["layer"]["name"])
        return {
            "VK_LAYER_PATH": _joined(*folders, os.environ.get("VK_LAYER_PATH")),
            "VK_INSTANCE_LAYERS": _joined(os.environ.get("VK_INSTANCE_LAYERS"), *names),
        }


def _joined(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)


def vulkan_environment() -> dict[str, str]:
    """Provide the environment in which a child process finds a device for VGF programs.

    Returns:
        Environment variables; what they point to exists as long as this process.

    Raises:
        RuntimeUnavailableError: Something is missing; the message says what to install.
    """
    device = find_device()
    return _environment(device.manifest, device.emulated)


def _environment(manifest: Path | None, emulated: bool) -> dict[str, str]:
    env = {}
    if manifest is not None:
        # Loaders before 1.3.207 know the second name only; later ones prefer the first.
        env = {"VK_DRIVER_FILES": str(manifest), "VK_ICD_FILENAMES": str(manifest)}
    if not emulated:
        return env
    emulation = Emulation.find()
    if emulation is None:
        raise RuntimeUnavailableError(
            "Running a VGF program without an Arm GPU needs Arm's ML emulation layers for Vulkan, "
            "the package ai_ml_emulation_layer_for_vulkan, which is not installed. Install it: "
            f'pip install "executorch[vgf]". {_WITHOUT_VULKAN}'
        )
    return {**env, **emulation.write_manifests(Path(_folder(os.getpid()).name))}


@cache
def _folder(process: int) -> tempfile.TemporaryDirectory[str]:
    # One for all sessions: children with the same environment are forked from one process.
    del process
    return tempfile.TemporaryDirectory(prefix="qcore-vulkan-")


def find_device() -> VulkanDevice:
    """Find the device that executes VGF programs here.

    A driver that has Arm's extensions itself comes first, then Arm's emulation layers on Mesa's
    llvmpipe, which runs on the processor.

    Returns:
        The device.

    Raises:
        RuntimeUnavailableError: There is none; the message says what to install.
    """
    return _find_device(tuple(os.environ.get(name, "") for name in _VARIABLES))


@cache
def _find_device(environment: tuple[str, ...]) -> VulkanDevice:
    del environment  # the key of the cache: drivers are searched again when it changes
    present = _probe({})
    if not present["loader"]:
        _unavailable("the Vulkan loader (libvulkan.so.1)", "libvulkan1")
    if any(_has(device, _NATIVE) for device in present["devices"]):
        return _native_device(present["devices"])
    return _emulated_device()


def _native_device(devices: Sequence[Mapping[str, Any]]) -> VulkanDevice:
    """Make sure that the device is the first one: ExecuTorch looks at no other."""
    if _has(devices[0], _NATIVE):
        return VulkanDevice(devices[0]["name"], devices[0]["driver"], None, emulated=False)
    for manifest in _driver_manifests("*.json"):
        found = _probe(_environment(manifest, emulated=False))["devices"]
        if found and _has(found[0], _NATIVE):
            return VulkanDevice(found[0]["name"], found[0]["driver"], manifest, emulated=False)
    return _emulated_device()


def _emulated_device() -> VulkanDevice:
    manifests = _driver_manifests(_LLVMPIPE)
    if not manifests:
        _unavailable("Mesa's software driver for Vulkan (llvmpipe)", "mesa-vulkan-drivers")
    # One for each architecture: those of others have no device.
    for manifest in manifests:
        answer = _probe(_environment(manifest, emulated=True))
        if answer["devices"]:
            break
    else:
        raise RuntimeUnavailableError(
            f"The Vulkan driver {manifest} does not start with Arm's emulation layers: "
            f"{answer['error'] or 'it has no device'}. {_WITHOUT_VULKAN}"
        )
    device = answer["devices"][0]
    missing = [name for name in _EMULATION_NEEDS if name not in device["extensions"]]
    if missing:
        raise RuntimeUnavailableError(
            f"Arm's ML emulation layers need {', '.join(missing)}, which the Vulkan driver here, "
            f"{device['driver'] or device['name']}, lacks. Mesa has it from 25.0 on: install "
            f"mesa-vulkan-drivers 25.0 or newer. {_HOW}{_WITHOUT_VULKAN}"
        )
    if not _has(device, _NATIVE):
        raise RuntimeUnavailableError(
            f"Arm's ML emulation layers do not load on {device['driver'] or device['name']}: "
            f"{', '.join(_NATIVE)} are missing. Install the versions that go together: "
            f'pip install "executorch[vgf]". {_WITHOUT_VULKAN}'
        )
    return VulkanDevice(device["name"], device["driver"], manifest, emulated=True)


_HOW: Final = (
    "On Debian 12 it comes from bookworm-backports; `make system-deps` in qcore's repository "
    "installs everything. "
)


def _unavailable(what: str, package: str) -> NoReturn:
    raise RuntimeUnavailableError(
        f"Running a VGF program needs {what}, which is not installed. Install libvulkan1 and "
        f"mesa-vulkan-drivers 25.0 or newer (missing here: {package}). {_HOW}{_WITHOUT_VULKAN}"
    )


def _has(device: Mapping[str, Any], extensions: Sequence[str]) -> bool:
    return set(extensions) <= set(device["extensions"])


def _probe(env: Mapping[str, str]) -> dict[str, Any]:
    script = Path(__file__).with_name("_probe.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script)],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=True,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"it did not answer within {_PROBE_TIMEOUT_S} s")
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        return _failed(said[-1] if said else f"exit status {error.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _failed(how: str) -> dict[str, Any]:
    return {"loader": True, "error": f"a driver failed: {how}", "devices": []}


def _driver_manifests(pattern: str) -> list[Path]:
    """List driver manifests where the loader looks for them, or where the user points it to.

    The folders are those of the loader's "Driver Discovery on Linux".
    """
    chosen = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if chosen:
        return [path for item in chosen.split(os.pathsep) for path in _expanded(item, pattern)]
    home = os.environ.get("HOME", "/")
    roots = [
        os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config",
        *(os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep),
        "/usr/local/etc",
        "/etc",
        os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share",
        *(os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(os.pathsep),
    ]
    folders = dict.fromkeys(Path(root) / "vulkan" / "icd.d" for root in roots)
    return [path for folder in folders for path in sorted(folder.glob(pattern))]


def _expanded(item: str, pattern: str) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        return sorted(path.glob(pattern))
    return [path] if path.match(pattern) else []
