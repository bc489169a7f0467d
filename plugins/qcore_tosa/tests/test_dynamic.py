"""Dynamic activations: ranges measured in float, products of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import SelectionError, UnsupportedSchemeError
from qcore_tosa import TosaQuantizer

Operators = Callable[[Any], list[tuple[str, str, str]]]

FLOAT_AND_INTEGERS = "TOSA-1.0+FP+INT"

IMAGE = torch.linspace(-1, 3, 3 * 10 * 10).reshape(1, 3, 10, 10)
#: Layers, and what of the picture they read.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
    "linear": (lambda: nn.Linear(10, 4), lambda x: x),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1, stride=2), lambda x: x[:, :, 0]),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), padding=(2, 1)), lambda x: x),
    "same": (lambda: nn.Conv2d(3, 4, 2, padding="same", dilation=3), lambda x: x),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False), lambda x: x[0]),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3, padding=1), lambda x: x.reshape(1, 3, 4, 5, 5)),
}


class EveryLayer(nn.Module):
    """One of each, on the same picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: make() for name, (make, _) in LAYERS.items()})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(LAYERS[name][1](x)) for name, layer in self.layers.items())


@torch.no_grad()
def sqnr_db(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


def quantized(model: nn.Module, x: torch.Tensor, scheme: str) -> tuple[Any, Any]:
    quantizer = TosaQuantizer(FLOAT_AND_INTEGERS).set_global(scheme)
    result = qcore.quantize(model.eval(), quantizer, [x], progress=False)
    return result.model, quantizer.lower(result.model, (x,))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_layers_compute_in_integers_what_the_converted_model_does(
    tosa_operators: Operators,
) -> None:
    model = EveryLayer()
    converted, program = quantized(model, IMAGE, "8da8w")
    products = [kinds for kinds in tosa_operators(program) if "CONV" in kinds[0]]
    assert [kinds[1:] for kinds in products] == [("INT8", "INT32")] * len(LAYERS)
    assert not program.report.undelegated
    for sample in (IMAGE, -100 * IMAGE):
        outputs = zip(model(sample), converted(sample), program.run(sample), strict=True)
        for layer, (exact, expected, actual) in zip(LAYERS, outputs, strict=True):
            assert sqnr_db(exact, expected) > 30, layer
            assert sqnr_db(expected, actual) > 100, layer


def test_the_range_is_that_of_each_input() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    static, dynamic = (quantized(model, x, scheme)[1] for scheme in ("8a8w", "8da8w"))
    exact = model(100 * x).detach()
    assert sqnr_db(exact, static.run(100 * x)) < 1
    assert sqnr_db(exact, dynamic.run(100 * x)) > 30


def test_an_input_of_zeros_gives_the_bias() -> None:
    model, x = nn.Linear(8, 8), torch.zeros(4, 8)
    _, program = quantized(model, x, "8da8w")
    torch.testing.assert_close(program.run(x), model(x).detach())


def test_static_and_dynamic_layers_stand_in_one_program(tosa_operators: Operators) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8)), IMAGE
    quantizer = TosaQuantizer(FLOAT_AND_INTEGERS).set_global("8a8w")
    quantizer.set_module_type(nn.Linear, "8da8w")
    result = qcore.quantize(model.eval(), quantizer, [x], progress=False)
    program = quantizer.lower(result.model, (x,))
    assert [d.scheme for d in result.report.quantized if "linear" in d.node] == [
        "8da8w dynamic per-channel"
    ]
    found = [kinds[1:] for kinds in tosa_operators(program) if kinds[0] == "CONV2D"]
    assert found == [("INT8", "INT32")] * 2
    assert sqnr_db(result.model(x), program.run(x)) > 40


def test_layers_in_the_bodies_of_a_conditional_are_dynamic(layers: nn.Module) -> None:
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    quantizer = TosaQuantizer(FLOAT_AND_INTEGERS).set_global("8da8w")
    graph = quantizer.quantize_with_submodules(layers, [x, -x])
    program = quantizer.lower(graph, (x,))
    for sample in (x, -x):
        assert sqnr_db(layers(sample).detach(), graph(sample)) > 30
        assert sqnr_db(graph(sample), program.run(sample)) > 100


def test_what_has_no_dynamic_form_is_rejected_with_a_reason() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x)
            return torch.nn.functional.linear(y, y.mean((0, 1)))

    quantizer = TosaQuantizer(FLOAT_AND_INTEGERS).set_global("8da8w")
    with pytest.raises(SelectionError) as refused:
        qcore.quantize(Model().eval(), quantizer, [IMAGE], progress=False)
    assert "conv_transpose2d with static activations only" in str(refused.value)
    assert "its weight is computed at run time" in str(refused.value)


def test_targets_without_float_refuse_dynamic_activations() -> None:
    with pytest.raises(UnsupportedSchemeError, match="does not execute 8da8w"):
        TosaQuantizer("TOSA-1.0+INT").set_global("8da8w")
