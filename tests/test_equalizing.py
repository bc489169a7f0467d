"""Columns of layers behind a norm are evened out where the model computes the same afterwards."""

import pytest
import torch
from torch import nn

import qcore
from qcore.algorithms import Gptq
from qcore.capture import Sample
from qcore.source.equalizing import equalize
from qcore.source.planning import LayerPlan
from qcore.source.rules import Layers
from qcore.source.scheme import SourceScheme


class OnePlus(nn.Module):
    """A norm as some language models have it: 1 is added to its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class Folded(nn.Module):
    """Two layers behind a norm, with columns as a norm's weight leaves that was folded into them.

    Args:
        norm: What lies before the layers.
        other: Another use of something, from (this module, input, the norm's output).
    """

    def __init__(self, norm, other=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.other = norm(32), other
        self.first, self.second = nn.Linear(32, 16), nn.Linear(32, 16, bias=False)
        self.rare = nn.Linear(32, 16)
        sizes = 4 * torch.rand(32) ** 3 + 0.05
        for layer in (self.first, self.second):
            layer.weight.data *= sizes

    def forward(self, x):
        values = self.norm(x)
        result = self.first(values) * self.second(values)
        return result if self.other is None else (result, self.other(self, x, values))


def evened(model, leave=("rare",)) -> bool:
    """Equalize a model, check that it computes what it did, and return whether anything moved."""
    model, x = model.eval(), torch.randn(4, 32)
    with torch.no_grad():
        before = model(x)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    scheme = SourceScheme("8da4w", 32)
    plans = [
        LayerPlan(layer, None if layer.name in leave else scheme) for layer in Layers(model).all
    ]
    equalize(model, plans, Sample.of(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    return any(not torch.equal(value, old[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, OnePlus])
def test_columns_behind_a_norm_are_alike_in_size_afterwards(norm):
    model = Folded(norm)
    assert evened(model)
    sizes = torch.cat([model.first.weight, model.second.weight]).norm(dim=0)
    torch.testing.assert_close(sizes, sizes.mean().expand(32))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda m, x, values: values, id="it is an output of the model"),
        pytest.param(lambda m, x, values: x + values, id="the norm's output is added to another"),
        pytest.param(lambda m, x, values: m.rare(values), id="a layer in float takes it"),
        pytest.param(lambda m, x, values: m.first(x), id="a layer takes something else, too"),
        pytest.param(lambda m, x, values: m.first.weight.sum(), id="a weight has another use"),
    ],
)
def test_what_has_another_use_stays_as_it_is(other):
    assert not evened(Folded(nn.RMSNorm, other))


def test_a_weight_that_two_layers_share_stays_as_it_is():
    model = Folded(nn.RMSNorm)
    model.rare.weight = model.first.weight
    assert not evened(model)


def test_a_model_with_a_layer_that_the_sample_does_not_reach_stays_as_it_is():
    assert not evened(Folded(nn.RMSNorm), leave=())


def test_what_does_not_grow_with_its_weight_is_no_norm():
    assert not evened(Folded(nn.PReLU))


def test_a_column_of_zeros_stays_zero():
    model = Folded(nn.RMSNorm)
    model.first.weight.data[:, 3] = model.second.weight.data[:, 3] = 0
    assert evened(model)
    assert not model.first.weight[:, 3].any()


def test_gptq_evens_out_the_columns_unless_told_not_to():
    errors = []
    for equalizes in (True, False):
        model, data = Folded(nn.RMSNorm).eval(), [torch.randn(64, 32)]
        exact = model(data[0])
        qcore.quantize_(
            model,
            "xnnpack",
            "8da4w",
            rules={"rare": None},
            algorithm=Gptq(equalizes=equalizes),
            calibration_data=data,
        )
        errors.append((model(data[0]) - exact).square().mean().item())
    assert errors[0] < 0.7 * errors[1]
