"""Runs ExecuTorch's own tests of Arm operators, from its wheel, with our quantizer.

A pytest plugin (``-p swap_quantizer``) that puts our names in place of theirs before any of their
modules is imported. As a script it runs the tests: ``python swap_quantizer.py [-k tosa_INT ...]``,
or ``make upstream-tests``. With ``QCORE_UPSTREAM=theirs`` it leaves the names alone, to compare.

Where ours differs by design, ``DIFFERENCES`` has the reason, and the case has to fail.

Cases of VGF run on ExecuTorch's Python runtime, in the place of a runner that is built from source.
Arm's simulators of Ethos-U are no packages: those cases compile with Vela, and end as expected
failures where they would start one.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import qcore_tosa
from qcore.errors import RuntimeUnavailableError
from qcore.pt2e import PreparedModel
from qcore_executorch.compat.torch import quick_decompositions
from qcore_vgf.vulkan import vulkan_environment

PACKAGE = "executorch.backends.arm.quantizer"
TESTS = Path("backends", "arm", "test", "ops")
CONFIGURATION = Path(__file__).with_name("pytest.ini")
THEIRS = os.environ.get("QCORE_UPSTREAM") == "theirs"
KINDS = "tosa_INT or vgf_quant or u55_INT or u85_INT"

# ExecuTorch's name for where VGF programs run on a host.
BOARD = "vkml_emulation_layer"

#: Cases of theirs that ours does not pass, by a pattern of file and name, and why.
DIFFERENCES: dict[str, str] = {
    r"test_add_tensor_\w+_i32\b|test_sigmoid_32bit\.py": "no scheme has int32 activations",
    r"test_to_tosa_INT_REDUNDANT_CAST\[rand_fp16_fp16\]": "float16 is not quantized",
    r"test_silu_tosa_INT_inplace\[op_silu_rank4_negative_large_rand\]": (
        "the operator overwrites the test's data while it calibrates; with the input's range for "
        "the output, as theirs has, every result is zero and passes"
    ),
    r"grouped_qat_axis0_keeps_fused_fake_quant\[axis0_grouped\]": (
        "a grouped transposed convolution is refused per channel: dimension 0 of its weight holds "
        "inputs"
    ),
    r"qat_correct_qspec_wrong_ctor_axis": (
        "a fake quantization whose constructor contradicts its qspec keeps what it was built with"
    ),
    r"test_matmul_(u55_INT|u85_INT|u85_INT_a16w8)\[.*_1d\]": (
        "fails with theirs, too: aten.dot and aten.mv are not lowered"
    ),
    r"test_conv_transpose2d_u85_INT\[grouped,per_channel_quant=True\]": (
        "fails with theirs, too: no scales per channel of grouped transposed convolutions"
    ),
    r"test_slice_tensor_u55_INT_step\[bool_2d_step4\]": (
        "fails with theirs, too: slices of booleans are not lowered"
    ),
    r"test_max_pool1d\.py::test_max_pool2d_\w+_decomposed": (
        "looks for max_pool1d, which is quantized as the two-dimensional one; with theirs it stays "
        "in float, which passes on VGF alone"
    ),
    r"test_upsample_nearest2d_vec_(tosa_INT|vgf_quant)\w*\[rand_(half|one_and_half)_": (
        "looks for upsample_nearest2d, which theirs computes at other positions than torch does, "
        "and is not compared; ours gathers torch's positions"
    ),
    r"test_native_batch_norm_legit_no_training_\w+_not_delegated": (
        "expects that a batch norm after no layer stays outside; ours quantizes it"
    ),
    r"test_while_loop_tosa_INT.*large_threshold": (
        "what a loop reads has one range, for ExecuTorch rescales all of it by the parameters of "
        "the first operand; beside a large threshold the values are rounded away"
    ),
}

#: Cases that theirs is expected to fail and ours passes.
PASSED = (
    r"test_conv_transpose2d_\w+_a8w4\[(?!grouped).*per_channel_quant=True\]",
    r"test_conv_transpose2d_u55_INT_not_delegated\[grouped",
)


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


def run_on_vulkan() -> None:
    """Execute VGF programs in this process, whose environment has to be that of a Vulkan device."""
    stage: Any = importlib.import_module("executorch.backends.arm.test.tester.serialize")
    find_runner, run_elsewhere = stage.get_elf_path, stage.run_target

    def get_elf_path(board: str, *args: Any, **kwargs: Any) -> str:
        if board == BOARD:
            return sys.executable
        try:
            return str(find_runner(board, *args, **kwargs))
        except FileNotFoundError:
            pytest.xfail(f"compiled, and not executed: {board} is not installed")

    def run_target(manager: Any, inputs: Any, folder: Any, board: str, *args: Any) -> Any:
        if board != BOARD:
            return run_elsewhere(manager, inputs, folder, board, *args)
        runtime = importlib.import_module("executorch.extension.pybindings._portable_lib")
        importlib.import_module("executorch.kernels.quantized")
        program = runtime._load_for_executorch_from_buffer(manager.buffer)
        # Expanded tensors become dense; others keep the order of dimensions that was exported.
        values = [v.clone() if isinstance(v, torch.Tensor) else v for v in inputs]
        return tuple(program.forward(values))

    stage.get_elf_path, stage.run_target = get_elf_path, run_target


def pytest_configure() -> None:
    """Prepare this process."""
    _session.enter_context(quick_decompositions())
    gc.disable()
    run_on_vulkan()


def pytest_unconfigure() -> None:
    """Undo what lasts for a session."""
    _session.close()


_session = ExitStack()
_since_collected = 0


def pytest_runtest_teardown() -> None:
    """Collect garbage now and then, instead of whenever torch has made many objects."""
    global _since_collected
    _since_collected = (_since_collected + 1) % 30
    if not _since_collected:
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the failures that are by design, and no others where ours does better."""
    for item in () if THEIRS else items:
        case = f"{item.path.name}::{item.name}"
        for pattern, reason in DIFFERENCES.items():
            if re.search(pattern, case):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True), append=False)
        if any(re.search(pattern, case) for pattern in PASSED):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "xfail"]


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
    arguments = sys.argv[1:]
    if "-k" not in arguments and "::" not in " ".join(arguments):
        arguments += ["-k", KINDS]
    # Where the model converter's script is, if the environment was not activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    cases = [str(folder / argument) for argument in arguments if "::" in argument]
    rest = [argument for argument in arguments if "::" not in argument]
    command = [sys.executable, "-m", "pytest", *options, *(cases or [str(folder)]), *rest]
    env = dict(os.environ)
    with suppress(RuntimeUnavailableError):  # Cases of VGF alone need it, and say so.
        env |= vulkan_environment()
    return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
