"""Quantization-aware training: layers with batch norm, in torchao's flow and in qcore's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

import qcore
from qcore.pt2e import PreparedModel
from qcore.quantizer import Quantizer

X = torch.randn(2, 3, 8, 8)


@pytest.fixture
def graph() -> GraphModule:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()).train()
    exported = torch.export.export(model, (X,)).module()
    assert isinstance(exported, GraphModule)
    return exported


def test_conv_bn_relu_is_one_pattern_in_both_flows(
    toy: Callable[[], Quantizer], graph: GraphModule
) -> None:
    quantizer = toy().set_global(qcore.get_symmetric_quantization_config(True, is_qat=True))
    ours = PreparedModel.prepare(copy.deepcopy(graph), quantizer, is_qat=True)
    prepared = prepare_qat_pt2e(graph, quantizer)
    assert quantizer.report is not None
    assert {d.pattern for d in quantizer.report.quantized} == {"conv2d + batch_norm + relu"}
    prepared(X).sum().backward()
    ours.model(X)
    converted = convert_pt2e(prepared)
    # qcore's leaves out the fusions for kinds of convolution that the model does not have.
    same = ours.convert()
    targets = [str(node.target) for node in converted.graph.nodes]
    assert targets.count("quantized_decomposed.quantize_per_tensor.default") == 2
    assert [str(node.target) for node in same.graph.nodes] == targets
    # Scales differ in the last digit, and a value that lies between two steps by one step.
    torch.testing.assert_close(same(X), converted(X), rtol=0, atol=0.02)
