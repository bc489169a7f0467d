"""The VGF quantizer: schemes, parts left in float, conditionals; executed over Vulkan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchao.quantization.pt2e.quantizer import QuantizationConfig

import qcore
from qcore.errors import QcoreError, UnsupportedSchemeError
from qcore_ethosu import EthosUCompileSpec
from qcore_vgf import (
    VgfCompileSpec,
    VgfQuantizer,
    get_symmetric_quantization_config,
    get_uint8_io_quantization_config,
)


class Net(nn.Module):
    """Two layers with an activation each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.second(torch.relu(self.first(x))), -1)


def test_both_ways_to_a_quantizer_have_executorchs_default_spec() -> None:
    for q in (VgfQuantizer(), VgfQuantizer(VgfCompileSpec()), qcore.get_quantizer("vgf")):
        assert q.name == "vgf"
        assert q.backend.compile_spec.tosa_spec.support_float()


@pytest.mark.parametrize("wrong", [3, EthosUCompileSpec("ethos-u55-128")])
def test_what_is_no_compile_spec_of_vgf_is_refused(wrong: object) -> None:
    with pytest.raises(QcoreError, match="takes ExecuTorch's VgfCompileSpec"):
        VgfQuantizer(wrong)


def test_what_is_no_tosa_specification_is_refused() -> None:
    with pytest.raises(QcoreError, match="is no TOSA specification"):
        qcore.get_quantizer("vgf", tosa_spec="TOSA-9")


def test_a_compile_spec_beside_options_to_build_one_is_refused() -> None:
    with pytest.raises(QcoreError, match="not both"):
        qcore.get_quantizer("vgf", compile_spec=VgfCompileSpec(), tosa_spec="TOSA-1.0+INT")


def test_weight_only_quantization_is_refused() -> None:
    weight = get_symmetric_quantization_config().weight
    with pytest.raises(UnsupportedSchemeError, match="does not execute weight-only"):
        VgfQuantizer().set_global(QuantizationConfig(None, None, weight, None))


@pytest.mark.slow
def test_a_module_set_to_none_is_in_float_in_the_executed_program(
    tosa_operators: Callable[[Any], list[tuple[str, str, str]]],
) -> None:
    model, rows = Net(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    outputs, kinds = {}, {}
    for left in (None, "first"):
        q = VgfQuantizer().set_global("8a8w per-tensor")
        if left:
            q.set_module_name(left, None)
        result = qcore.quantize(model, q, [rows], bias_correction=False)
        program = q.lower(result.model, rows)
        outputs[left], kinds[left] = program.run(rows), tosa_operators(program)
        if left:
            assert {d.node for d in result.report.in_float} == {"linear"}
    # A linear layer is a convolution in TOSA.
    layers = {left: [(i, o) for n, i, o in found if n == "CONV2D"] for left, found in kinds.items()}
    assert layers == {
        None: [("INT8", "INT32")] * 2,
        "first": [("FP32", "FP32"), ("INT8", "INT32")],
    }
    exact = model(rows).detach()
    assert (outputs["first"] - exact).norm() < (outputs[None] - exact).norm()


@pytest.mark.slow
def test_both_paths_of_a_conditional_run(branches: nn.Module, row: torch.Tensor) -> None:
    # Arm's model converter has no control flow, whatever the specification says.
    q = qcore.get_quantizer("vgf", tosa_spec="TOSA-1.0+FP+INT+cf").set_global("8a8w")
    graph = q.quantize_with_submodules(branches, [row, -row])
    program = q.lower(graph, row)
    assert program.report.delegates == 3
    for sample in (row, -row):
        torch.testing.assert_close(program.run(sample), graph(sample), rtol=0, atol=0.01)


@pytest.mark.slow
def test_pooling_without_a_stride_lowers(picture: torch.Tensor) -> None:
    class Pools(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.avg_pool2d(functional.max_pool2d(x, 2), 2)

    q = VgfQuantizer().set_global("8a8w")
    result = qcore.quantize(Pools(), q, [picture])
    program = q.lower(result.model, picture)
    assert program.report.is_fully_delegated
    output = program.run(picture, reference=True)
    # Pooling keeps the range of its input; its rounding may differ by one of 255 steps.
    step = float(picture.max() - picture.min()) / 255 * 1.01
    torch.testing.assert_close(output, result.model(picture), rtol=0, atol=step)


@pytest.mark.slow
def test_uint8_inputs_are_quantized_and_run(cnn: nn.Module, picture: torch.Tensor) -> None:
    q = VgfQuantizer().set_global("8a8w").set_io(get_uint8_io_quantization_config())
    result = qcore.quantize(cnn, q, [picture])
    program = q.lower(result.model, picture)
    step = float(result.model(picture).abs().max()) / 50
    torch.testing.assert_close(program.run(picture), result.model(picture), rtol=0, atol=step)
