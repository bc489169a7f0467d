"""Decomposition: only of what will be quantized, with the same outputs and the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import qcore
from qcore_tosa import TosaQuantizer, get_symmetric_quantization_config

aten = torch.ops.aten
X = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


class Composite(nn.Module):
    """Operators that TOSA has only in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.groups = nn.GroupNorm(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.groups(x) / 3 + functional.elu(x, 0.5)
        return torch.softmax(x.var(1, keepdim=True) + x.mean(1, keepdim=True) + x, -1)


def quantizer() -> TosaQuantizer:
    return TosaQuantizer("TOSA-1.0+FP+INT").set_global(get_symmetric_quantization_config())


def captured(model: nn.Module, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), inputs).module()


def test_decomposition_changes_no_float_output() -> None:
    model = Composite()
    graph = quantizer().transform_for_annotation(captured(model, X))
    torch.testing.assert_close(graph(X), model(X), atol=1e-6, rtol=1e-5)
    targets = {node.target for node in graph.graph.nodes}
    assert not targets & {
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.softmax.int,
        aten.scaled_dot_product_attention.default,
    }


def test_what_stays_in_float_is_not_decomposed() -> None:
    q = quantizer().set_module_name("norm", None).set_operator_type(aten.softmax.int, None)
    graph = q.transform_for_annotation(captured(Composite(), X))
    targets = [node.target for node in graph.graph.nodes]
    assert aten.layer_norm.default in targets
    assert aten.softmax.int in targets
    assert aten.group_norm.default not in targets


def test_every_piece_answers_to_the_module_it_comes_from() -> None:
    q = TosaQuantizer("TOSA-1.0+FP+INT")
    q.set_module_name("norm", get_symmetric_quantization_config())
    report = qcore.quantize(Composite(), q, [X]).report
    assert sum(d.module == "norm" for d in report.quantized) > 5
    assert not [d for d in report.in_float if d.module == "norm"]
    assert report["softmax"].scheme is None


def test_a_rule_by_node_name_goes_by_the_name_in_the_users_model() -> None:
    q = quantizer().set_node_name("softmax", None)
    report = qcore.quantize(Composite(), q, [X]).report
    assert report["softmax"].operator == "aten.softmax.int"
    assert report["softmax"].reason == "set_node_name('softmax', None) leaves it in float"


def test_a_rule_by_operator_covers_its_pieces() -> None:
    q = TosaQuantizer("TOSA-1.0+FP+INT")
    q.set_operator_type(aten.layer_norm.default, get_symmetric_quantization_config())
    report = qcore.quantize(Composite(), q, [X]).report
    assert "aten.rsqrt.default" in {d.operator for d in report.quantized}
    assert report["softmax"].scheme is None


@pytest.mark.parametrize("flag", [True, False])
def test_both_branches_of_a_conditional_are_quantized(flag: bool) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, self.a, self.b, (x * 2,))

    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(2, 8)
    samples = [x, -x]
    graph = quantizer().quantize_with_submodules(model, samples)
    sample = samples[flag]
    torch.testing.assert_close(graph(sample), model(sample).detach(), atol=0.1, rtol=0.1)
    assert torch.int8 in {b.dtype for b in graph.buffers()}


def test_a_loop_is_quantized() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loop = torch.ops.higher_order.while_loop
            return loop(lambda v: v.sum() < 30, lambda v: (v + v,), (x,), ())[0]

    model = Doubling()
    graph = quantizer().quantize_with_submodules(model, [torch.ones(4)])
    torch.testing.assert_close(graph(torch.ones(4)), model(torch.ones(4)), atol=0.2, rtol=0)


def test_a_loop_that_no_sample_enters_stays_in_float_with_a_warning() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loop = torch.ops.higher_order.while_loop
            return loop(lambda v: v.sum() < 3, lambda v: (v + v,), (x,), ())[0]

    with pytest.warns(qcore.errors.QcoreWarning, match="No calibration sample reached"):
        graph = quantizer().quantize_with_submodules(Doubling(), [torch.ones(4)])
    torch.testing.assert_close(graph(torch.ones(4)), torch.ones(4), atol=0.1, rtol=0)


def test_a_loop_that_reads_a_constant_computes_the_same() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.limit = nn.Buffer(torch.tensor([30.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.while_loop(
                lambda value: (value.sum() < self.limit).squeeze(),
                lambda value: (value + torch.ones_like(value),),
                (x,),
            )[0]

    x = torch.zeros(2, 4)
    graph = quantizer().transform_for_annotation(captured(Loop(), x))
    assert torch.equal(graph(x), torch.full((2, 4), 4.0))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_of_a_single_sample_lowers(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 4, 3), nn.ReLU()).eval()
    x = X[0] if kind is nn.Conv1d else X[0].reshape(4, 4, 2).repeat(1, 1, 2)
    result = qcore.quantize(model, quantizer(), [x], progress=False)
    output = quantizer().lower(result.model, (x,)).run(x)
    assert output.shape == model(x).shape
    torch.testing.assert_close(output, result.model(x), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("pool", "x"),
    [
        pytest.param(nn.MaxPool1d(3, 2, 1, ceil_mode=True), X, id="max"),
        pytest.param(nn.AvgPool1d(3, 2, 1, count_include_pad=False), X, id="average"),
        pytest.param(nn.AdaptiveAvgPool1d(1), X, id="adaptive average"),
        pytest.param(nn.AvgPool1d(2), X[0], id="a single sample"),
    ],
)
def test_pooling_in_one_dimension_lowers(pool: nn.Module, x: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 1), pool).eval()
    result = qcore.quantize(model, quantizer(), [x], progress=False)
    assert not result.report.in_float
    program = quantizer().lower(result.model, (x,))
    assert program.report.is_fully_delegated
    output = program.run(x)
    torch.testing.assert_close(output, result.model(x), rtol=0, atol=0.02)
    torch.testing.assert_close(output, model(x).detach(), rtol=0, atol=0.05)
