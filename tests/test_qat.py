"""Quantization-aware training: layers with batch norm, in torchao's flow and in qcore's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)

import qcore
from qcore import errors
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


def _fake_quantized(prepared: GraphModule) -> tuple[int, int]:
    """Count the fake quantizations, and the observers that stand alone."""
    modules = list(prepared.modules())
    fake = [m for m in modules if isinstance(m, FakeQuantizeBase)]
    inside = {id(f.activation_post_process) for f in fake}
    alone = [m for m in modules if isinstance(m, ObserverBase) and id(m) not in inside]
    return len(fake), len(alone)


@pytest.mark.usefixtures("quick_fusions")
@pytest.mark.parametrize("config", ["8a8w", qcore.get_symmetric_quantization_config(True)])
def test_what_is_prepared_for_training_has_fake_quantization(
    toy: Callable[[], Quantizer], graph: GraphModule, config: object
) -> None:
    prepared = prepare_qat_pt2e(graph, toy().set_global(config))  # type: ignore[arg-type]
    assert _fake_quantized(prepared) == (3, 0)


@pytest.mark.usefixtures("quick_fusions")
def test_a_quantizer_prepares_models_for_training_and_others_in_any_order(
    toy: Callable[[], Quantizer], graph: GraphModule
) -> None:
    quantizer = toy().set_global("8a8w")
    trained = prepare_qat_pt2e(copy.deepcopy(graph), quantizer)
    calibrated = prepare_pt2e(graph, quantizer)
    assert _fake_quantized(trained) == (3, 0)
    assert _fake_quantized(calibrated) == (0, 3)


@pytest.mark.usefixtures("quick_fusions")
def test_an_observer_of_the_user_s_own_is_kept_inside_the_fake_quantization(
    toy: Callable[[], Quantizer], graph: GraphModule
) -> None:
    class Mine(ObserverBase):
        def __init__(self, **options: object) -> None:
            super().__init__(dtype=torch.int8)
            self.quant_min, self.quant_max = -128, 127
            self.qscheme = torch.per_tensor_affine

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([0.1]), torch.tensor([0])

    config = qcore.get_symmetric_quantization_config(True, act_observer=Mine)
    prepared = prepare_qat_pt2e(graph, toy().set_global(config))
    kinds = [
        type(m.activation_post_process)
        for m in prepared.modules()
        if isinstance(m, FakeQuantizeBase)
    ]
    assert kinds.count(Mine) == 2


def test_a_scheme_that_nothing_trains_is_refused_by_name(
    toy: Callable[[], Quantizer], graph: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = toy().set_global("8a8w")
    executed = [s for s in quantizer.supported_schemes if not s.is_qat]
    monkeypatch.setattr(quantizer, "_schemes", tuple(executed))
    with pytest.raises(
        errors.UnsupportedSchemeError,
        match=r"toy has no fake quantization for 8a8w static per-channel.*is_qat=False",
    ):
        prepare_qat_pt2e(graph, quantizer)


class _Norms(nn.Module):
    """A batch norm behind a layer, and one that follows none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.alone = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alone(torch.relu(self.norm(self.conv(x))) + x)


@pytest.fixture
def norms() -> nn.Module:
    torch.manual_seed(0)
    model = _Norms()
    for _ in range(20):  # Statistics that are not those of single samples.
        model(torch.randn(16, 3, 8, 8) * 2 + 1)
    return model.eval()


@pytest.mark.parametrize("of", ["name", "configuration"])
def test_where_nobody_trains_fake_quantization_costs_no_accuracy(
    toy: Callable[[], Quantizer], norms: nn.Module, of: str
) -> None:
    samples = [torch.randn(1, 3, 8, 8, generator=torch.manual_seed(i)) * 2 + 1 for i in range(16)]
    trained: object = "8a8w"
    if of == "configuration":
        trained = qcore.get_symmetric_quantization_config(True, is_qat=True)
    after = qcore.quantize(norms, toy().set_global("8a8w"), samples).model
    fake = qcore.quantize(norms, toy().set_global(trained), samples, is_qat=True).model  # type: ignore[arg-type]

    def noise(model: GraphModule) -> float:
        return sum(float((model(x) - norms(x)).detach().pow(2).sum()) for x in samples)

    assert noise(fake) <= noise(after)


def test_a_program_exported_in_training_mode_is_quantized_with_its_statistics(
    toy: Callable[[], Quantizer], norms: nn.Module
) -> None:
    x = torch.randn(1, 3, 8, 8)
    expected = norms(x)
    exported = torch.export.export(norms.train(), (x,))
    converted = qcore.quantize(exported, toy().set_global("8a8w"), [x]).model
    torch.testing.assert_close(converted(x), expected, rtol=0, atol=0.3)


@pytest.mark.usefixtures("quick_fusions")
def test_batch_norms_that_still_train_are_not_lowered(
    toy: Callable[[], Quantizer], norms: nn.Module
) -> None:
    quantizer = toy().set_global("8a8w")
    prepared = prepare_qat_pt2e(torch.export.export(norms.train(), (X,)).module(), quantizer)
    prepared(X)
    with pytest.raises(
        errors.LoweringError, match=r"'alone'.*move_exported_model_to_eval\(prepared\)"
    ):
        quantizer.lower(convert_pt2e(prepared), (X,))


@pytest.mark.usefixtures("quick_fusions")
def test_dropouts_that_still_drop_are_not_lowered(toy: Callable[[], Quantizer]) -> None:
    quantizer = toy().set_global("8a8w")
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()).train()
    prepared = prepare_qat_pt2e(torch.export.export(model, (X,)).module(), quantizer)
    prepared(X)
    with pytest.raises(errors.LoweringError, match="dropout in '1'.*drop values at random"):
        quantizer.lower(convert_pt2e(prepared), (X,))
