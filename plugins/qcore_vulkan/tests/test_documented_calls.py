"""The calls of ExecuTorch's page on quantization for Vulkan, with the imports changed to ours.

The page: docs/source/backends/vulkan/vulkan-quantization.md of ExecuTorch 1.0 and later. Lowering
stays ExecuTorch's own, as it stands there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.granularity import PerGroup
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.quant_api import (
    Int8DynActInt4WeightQuantizer,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
)
from torchao.utils import unwrap_tensor_subclass

import qcore
from qcore.errors import UnsupportedSchemeError
from qcore_vulkan import VulkanQuantizer, get_symmetric_quantization_config, quantize_
from qcore_vulkan.graph import decode


class LinearSequenceModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1 = torch.nn.Linear(128, 64, bias=False)
        self.linear2 = torch.nn.Linear(64, 32, bias=False)
        self.linear3 = torch.nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear3(self.linear2(self.linear1(x)))


SAMPLE_INPUTS = (torch.randn(32, 128),)


def delegated(program: Any) -> list[str]:
    """The operators in the one delegate of a program that has nothing else."""
    plan = program.executorch_program.execution_plan[0]
    assert (len(plan.delegates), plan.operators) == (1, [])
    (graph,) = decode(program.buffer)
    return [name for name in graph.operators if "linear" in name or "mm" in name]


@pytest.mark.parametrize(
    ("config", "operator"),
    [
        (
            Int8DynamicActivationIntxWeightConfig(
                weight_dtype=torch.int4, weight_granularity=PerGroup(32)
            ),
            "et_vk.linear_dq8ca_q4gsw.default",
        ),
        (
            IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
            "et_vk.linear_q4gsw.default",
        ),
    ],
    ids=["8da4w", "4w"],
)
def test_quantize_with_groups_of_32(config: Any, operator: str):
    linear_sequence_module = LinearSequenceModule()
    quantize_(linear_sequence_module, config)
    unwrap_tensor_subclass(linear_sequence_module)
    exported_program = torch.export.export(linear_sequence_module, SAMPLE_INPUTS)
    etvk_program = to_edge_transform_and_lower(
        exported_program, partitioner=[VulkanPartitioner()]
    ).to_executorch()
    assert delegated(etvk_program) == [operator] * 3


def test_pt2e_with_8_bit_weights():
    linear_sequence_module = LinearSequenceModule()
    quantizer = VulkanQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_dynamic=False, weight_bits=8))
    exported = torch.export.export(linear_sequence_module, SAMPLE_INPUTS)
    prepared = prepare_pt2e(exported.module(), quantizer)
    prepared(*SAMPLE_INPUTS)
    quantized = convert_pt2e(prepared)
    etvk_program = to_edge_transform_and_lower(
        torch.export.export(quantized, SAMPLE_INPUTS), partitioner=[VulkanPartitioner()]
    ).to_executorch()
    assert delegated(etvk_program) == ["aten._weight_int8pack_mm.default"] * 3


def test_quantize_checks_the_backend_first():
    with pytest.raises(UnsupportedSchemeError, match="vulkan does not execute 8w"):
        quantize_(LinearSequenceModule(), IntxWeightOnlyConfig(weight_dtype=torch.int8))


def test_the_older_torchao_quantizer_lowers_and_is_verified():
    model = Int8DynActInt4WeightQuantizer(precision=torch.float32, groupsize=32).quantize(
        LinearSequenceModule()
    )
    program = qcore.get_quantizer("vulkan").lower(model, SAMPLE_INPUTS)
    found = program.verify(*SAMPLE_INPUTS)
    assert found.ok, found
    assert found.operators["et_vk.linear_dq8ca_q4gsw.default"] == 3
