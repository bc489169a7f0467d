"""Runs ExecuTorch's own tests of Arm operators, from its wheel, with our quantizer.

A pytest plugin (``-p swap_quantizer``) that puts our names in place of theirs before any of their
modules is imported. As a script it runs the tests: ``python swap_quantizer.py [-k tosa_INT ...]``,
or ``make upstream-tests``. With ``QCORE_UPSTREAM=theirs`` it leaves the names alone, to compare.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch.fx import GraphModule

import qcore_tosa
from qcore.pt2e import PreparedModel

PACKAGE = "executorch.backends.arm.quantizer"
TESTS = Path("backends", "arm", "test", "ops")
CONFIGURATION = Path(__file__).with_name("pytest.ini")
THEIRS = os.environ.get("QCORE_UPSTREAM") == "theirs"


class TosaQuantizer(qcore_tosa.TosaQuantizer):
    """Ours, with the private method that ExecuTorch's test harness calls."""

    def _quantize_with_submodules(
        self,
        model: GraphModule,
        calibration_samples: Iterable[Any],
        is_qat: bool = False,
        fold_quantize: bool = True,
    ) -> GraphModule:
        prepared = PreparedModel.prepare(model, self, is_qat)
        for sample in calibration_samples:
            prepared.model(*sample)
        return prepared.convert(fold_quantize=fold_quantize)


class EthosUQuantizer(TosaQuantizer):
    """Under the name that the Ethos-U tests use."""


class VgfQuantizer(TosaQuantizer):
    """Under the name that the VGF tests use."""


OURS = {
    "TOSAQuantizer": TosaQuantizer,
    "EthosUQuantizer": EthosUQuantizer,
    "VgfQuantizer": VgfQuantizer,
    **{
        name: getattr(qcore_tosa, name)
        for name in (
            "get_symmetric_quantization_config",
            "get_symmetric_a8w4_quantization_config",
            "get_symmetric_a16w8_quantization_config",
            "get_uint8_io_quantization_config",
        )
    },
}


def swap() -> None:
    """Put our names in place of theirs."""
    for module in (PACKAGE, f"{PACKAGE}.arm_quantizer"):
        theirs = importlib.import_module(module)
        for name, ours in OURS.items():
            if hasattr(theirs, name):
                setattr(theirs, name, ours)


if not THEIRS and __name__ != "__main__":
    swap()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop if the harness has their quantizer after all."""
    harness = importlib.import_module("executorch.backends.arm.test.tester.test_pipeline")
    if not THEIRS and harness.TOSAQuantizer is not TosaQuantizer:
        raise pytest.UsageError("The test harness uses ExecuTorch's own quantizer, not ours.")


def main() -> int:
    """Run the tests and return pytest's exit code."""
    found = importlib.util.find_spec("executorch")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(next(iter(found.submodule_search_locations)))
    folder = package / TESTS
    os.environ.setdefault("FLATC_EXECUTABLE", str(package / "data" / "bin" / "flatc"))
    options = ["-q", "-c", str(CONFIGURATION), "-p", "swap_quantizer", "-p", "no:cacheprovider"]
    arguments = sys.argv[1:] or ["-k", "tosa_INT"]
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    return int(pytest.main([*options, str(folder), *arguments]))


if __name__ == "__main__":
    sys.exit(main())
