"""Runs ExecuTorch's own XNNPACK quantizer tests, from its wheel, with our quantizer.

A pytest plugin (``-p swap_quantizer``) puts our two names in place of theirs before the tests are
collected, and stops the run if a collected test module got theirs all the same. As a script it runs
them: ``python swap_quantizer.py [pytest's options]``, or ``make upstream-tests``.

Where ours differs by design, ``DIFFERENCES`` has the reason, and the test has to fail.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import qcore_xnnpack

THEIR_MODULE = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
NAMES = ("XNNPACKQuantizer", "get_symmetric_quantization_config")
TESTS = Path("backends", "xnnpack", "test", "quantizer")
CONFIGURATION = Path(__file__).with_name("pytest.ini")

DIFFERENCES = {
    "test_obs_sharing_ops": "no delegate of XNNPACK takes a mean over all dimensions; theirs "
    "quantizes one, which then runs in float between a quantize and a dequantize operator",
}


def upstream_tests() -> Path:
    """Return the folder of the tests; it is no package, so only its path finds it."""
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("ExecuTorch is not installed: its tests cannot be run.")
    folder = Path(next(iter(found.submodule_search_locations))) / TESTS
    if not folder.is_dir():
        raise SystemExit(f"This ExecuTorch has no quantizer tests: there is no {folder}.")
    return folder


def pytest_configure() -> None:
    """Swap the names."""
    theirs = importlib.import_module(THEIR_MODULE)
    for name in NAMES:
        if not hasattr(theirs, name):
            raise pytest.UsageError(f"{THEIR_MODULE} has no {name} to replace.")
        setattr(theirs, name, getattr(qcore_xnnpack, name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the failures that are by design, and no others."""
    for item in items:
        if reason := DIFFERENCES.get(item.name):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop unless every collected test module has our names."""
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    swapped = [name for module in modules for name in NAMES if _has_ours(module, name)]
    if "XNNPACKQuantizer" not in swapped:
        raise pytest.UsageError("No collected test module uses the quantizer: nothing to prove.")


def _has_ours(module: ModuleType, name: str) -> bool:
    value = getattr(module, name, None)
    if value is not None and value is not getattr(qcore_xnnpack, name):
        raise pytest.UsageError(f"{module.__name__} uses ExecuTorch's own {name}, not ours.")
    return value is not None


def main() -> int:
    """Run the tests and return pytest's exit code."""
    folder = str(upstream_tests())
    options = ["-q", "-c", str(CONFIGURATION), "--rootdir", folder, folder, *sys.argv[1:]]
    return int(pytest.main(options, plugins=[sys.modules[__name__]]))


if __name__ == "__main__":
    sys.exit(main())
