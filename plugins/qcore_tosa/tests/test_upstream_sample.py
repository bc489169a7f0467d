"""A sample of ExecuTorch's own tests, with our quantizer; ``make upstream-tests`` runs them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qcore_vgf.vulkan import find_device

SCRIPT = Path(__file__).parent / "upstream" / "swap_quantizer.py"

EXECUTED = (
    "test_add.py::test_add_tensor_tosa_INT[4d_ones_1]",
    "test_avg_pool2d.py::test_avg_pool2d_tosa_INT[rand]",
    "test_conv2d.py::test_convolution_2d_tosa_INT[3x3_1x3x28x28_st2_pd1,per_channel_quant=True]",
    "test_conv2d.py::test_convolution_2d_tosa_INT_a16w8[3x3_1x3x24x24_st1,per_channel_quant=True]",
    "test_lt.py::test_lt_tensor_tosa_INT[lt_tensor_rank3_randn]",
    "test_mean_dim.py::test_mean_dim_tosa_INT[rand_13_keepdim]",
    "test_softmax.py::test_softmax_tosa_INT[randn_neg_dim]",
    "test_transpose_conv2d.py::test_conv_transpose2d_tosa_INT[basic,per_channel_quant=True]",
)
COMPILED = ("test_softmax.py::test_softmax_u85_INT[randn_neg_dim]",)
ON_VULKAN = "test_linear.py::test_linear_vgf_quant[model_linear_rank4_rand,per_channel_quant=True]"


def outcome(*cases: str) -> str:
    command = [sys.executable, str(SCRIPT), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_executorchs_own_cases_pass() -> None:
    # Where Arm's simulators are not installed, a case ends when it would start one.
    assert f"{len(EXECUTED)} passed, {len(COMPILED)} xfailed" in outcome(*EXECUTED, *COMPILED)


@pytest.mark.slow
def test_executorchs_own_case_for_vgf_passes() -> None:
    find_device()
    assert "1 passed" in outcome(ON_VULKAN)
