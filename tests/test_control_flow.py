"""Bodies of conditionals and loops are quantized and calibrated like the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._higher_order_ops import while_loop

import qcore
from qcore.errors import CalibrationError, QcoreWarning
from qcore.quantizer import Quantizer

Build = Callable[[], Quantizer]
POSITIVE = [torch.rand(2, 4) + k / 4 for k in range(4)]
NEGATIVE = [-x for x in POSITIVE]


class Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.stem = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(
            x.sum() > 0,
            lambda y: torch.relu(self.a(y)),
            lambda y: self.b(y),
            (self.stem(x),),
        )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def outer(y: torch.Tensor) -> torch.Tensor:
            y = self.a(y)
            return torch.cond(y.sum() > 0, lambda z: self.b(z), lambda z: self.c(z), (y,))

        return torch.cond(x.sum() > 0, outer, lambda y: y * 2.0, (x,))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return while_loop(
            lambda i, y: i < times,
            lambda i, y: (i + 1, torch.relu(self.a(y))),
            (torch.tensor(0), x),
        )[1]


def close(model: nn.Module, quantized: nn.Module, *inputs: torch.Tensor) -> bool:
    return bool((model(*inputs) - quantized(*inputs)).abs().max() < 0.1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_both_branches_of_a_conditional_are_quantized(toy: Build) -> None:
    model = Cond().eval()
    quantizer = toy().set_global("8a8w")
    converted = quantizer.quantize_with_submodules(model, POSITIVE + NEGATIVE)
    assert all(close(model, converted, x) for x in POSITIVE + NEGATIVE)
    assert {d.node for d in quantizer.report.quantized} == {  # type: ignore[union-attr]
        "linear",
        "true_graph_0/linear_1",
        "true_graph_0/relu",
        "false_graph_0/linear_1",
    }


def test_the_weights_of_a_branch_are_integers_ahead_of_time(toy: Build) -> None:
    converted = toy().set_global("8a8w").quantize_with_submodules(Cond(), POSITIVE + NEGATIVE)
    (call,) = [n for n in converted.graph.nodes if "cond" in n.name]
    operands = [converted.get_buffer(n.target) for n in call.args[3] if n.op == "get_attr"]
    assert sum(operand.dtype is torch.int8 for operand in operands) == 2
    assert not [o for o in operands if o.dtype is torch.float32 and o.dim() == 2]


def test_a_branch_no_sample_reached_stays_in_float_and_is_named(toy: Build) -> None:
    model = Cond().eval()
    quantizer = toy().set_global("8a8w")
    with pytest.warns(QcoreWarning, match="reached 'false_graph_0', a body of cond.*takes this"):
        converted = quantizer.quantize_with_submodules(model, POSITIVE)
    assert all(close(model, converted, x) for x in POSITIVE)
    decision = quantizer.report["false_graph_0/linear_1"]  # type: ignore[index]
    assert decision.reason == "no calibration sample reached it"


def test_nested_conditionals_are_quantized(toy: Build) -> None:
    model = Nested().eval()
    samples = [torch.randn(2, 4) for _ in range(32)]
    quantizer = toy().set_global("8a8w")
    converted = quantizer.quantize_with_submodules(model, samples)
    assert all(close(model, converted, x) for x in samples[:6])
    modules = {d.node.rpartition("/")[0]: d.module for d in quantizer.report.quantized}  # type: ignore[union-attr]
    assert modules["true_graph_0"] == "a"
    assert modules["true_graph_0.true_graph_0"] == "b"


def test_only_the_outermost_unreached_branch_is_named(toy: Build) -> None:
    with pytest.warns(QcoreWarning) as seen:
        toy().set_global("8a8w").quantize_with_submodules(Nested().eval(), NEGATIVE)
    assert [str(w.message).split("'")[1] for w in seen] == ["true_graph_0"]


def test_fake_quantization_of_branches_where_nobody_trains_costs_no_accuracy(toy: Build) -> None:
    model, samples = Cond().eval(), POSITIVE + NEGATIVE

    def noise(is_qat: bool) -> float:
        quantizer = toy().set_global("8a8w")
        converted = quantizer.quantize_with_submodules(model, samples, is_qat=is_qat)
        return sum(float((model(x) - converted(x)).detach().pow(2).sum()) for x in samples)

    assert 0 < noise(is_qat=True) <= noise(is_qat=False)


def test_the_body_of_a_loop_is_quantized(toy: Build) -> None:
    model = Loop().eval()
    samples = [(x, torch.tensor(3)) for x in POSITIVE]
    quantizer = toy().set_global("8a8w")
    converted = quantizer.quantize_with_submodules(model, samples)
    assert close(model, converted, *samples[0])
    assert quantizer.report["while_loop_body_graph_0/linear"].is_quantized  # type: ignore[index]


def test_a_module_is_selected_by_name_inside_a_branch(toy: Build) -> None:
    quantizer = toy().set_global("8a8w").set_module_name("b", None)
    quantizer.quantize_with_submodules(Cond().eval(), POSITIVE + NEGATIVE)
    decision = quantizer.report["false_graph_0/linear_1"]  # type: ignore[index]
    assert decision.reason == "set_module_name('b', None) leaves it in float"


def test_quantize_does_the_same_in_one_call(toy: Build) -> None:
    result = qcore.quantize(Cond().eval(), toy().set_global("8a8w"), POSITIVE + NEGATIVE)
    assert result.report["true_graph_0/linear_1"].is_quantized


def test_a_converted_conditional_runs_with_gradients_enabled(toy: Build) -> None:
    result = qcore.quantize(Cond().eval(), toy().set_global("8a8w"), POSITIVE + NEGATIVE)
    assert torch.is_grad_enabled()
    assert result.model(POSITIVE[0]).shape == (2, 4)


def test_samples_are_checked_here_too(toy: Build) -> None:
    with pytest.raises(CalibrationError, match="has no samples"):
        toy().set_global("8a8w").quantize_with_submodules(Cond(), [])
