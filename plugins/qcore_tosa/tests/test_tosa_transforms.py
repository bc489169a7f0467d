"""Decomposition: only of what will be quantized, with the same outputs and the same names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import qcore
from qcore.graph import control_flow_bodies
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


def quantizing_bodies(graph: torch.fx.GraphModule) -> dict[str, bool]:
    """Say of each body of control flow whether anything in it is quantized."""
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return {
        name: any(node.target is quantize for node in body.graph.nodes)
        for name, _, body in control_flow_bodies(graph)
    }


def test_both_branches_of_a_conditional_are_quantized() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, self.a, self.b, (x * 2,))

    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(2, 8)
    graph = quantizer().quantize_with_submodules(model, [x, -x])
    assert list(quantizing_bodies(graph).values()) == [True, True]
    for sample in (x, -x):
        torch.testing.assert_close(graph(sample), model(sample).detach(), atol=0.1, rtol=0.1)


def test_a_loop_is_quantized() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loop = torch.ops.higher_order.while_loop
            return loop(lambda v: v.sum() < 30, lambda v: (v + v,), (x,), ())[0]

    model, x = Doubling(), torch.tensor([0.5, 1.0, 1.0, 1.5])
    graph = quantizer().quantize_with_submodules(model, [x])
    assert list(quantizing_bodies(graph).values()) == [True, True]
    torch.testing.assert_close(graph(x), model(x), atol=0.2, rtol=0)


def test_a_loop_that_no_sample_enters_stays_in_float_with_a_warning() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loop = torch.ops.higher_order.while_loop
            return loop(lambda v: v.sum() < 3, lambda v: (v + v,), (x,), ())[0]

    x = torch.tensor([0.5, 1.0, 1.0, 1.5])
    with pytest.warns(qcore.errors.QcoreWarning, match="No calibration sample reached"):
        graph = quantizer().quantize_with_submodules(Doubling(), [x])
    torch.testing.assert_close(graph(x), x, atol=0.1, rtol=0)


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


def lowered_like_float(model: nn.Module, x: torch.Tensor) -> qcore.AnnotationReport:
    """Lower and execute a model, compare it to the converted one and to float."""
    result = qcore.quantize(model.eval(), quantizer(), [x], progress=False)
    assert not result.report.in_float
    program = quantizer().lower(result.model, (x,))
    assert program.report.is_fully_delegated
    output = program.run(x)
    torch.testing.assert_close(output, result.model(x), rtol=0, atol=0.02)
    torch.testing.assert_close(output, model(x).detach(), rtol=0, atol=0.05)
    return result.report


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_of_a_single_sample_lowers_with_what_is_fused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = X[0] if kind is nn.Conv1d else X[0].reshape(4, 4, 2).repeat(1, 1, 2)
    report = lowered_like_float(nn.Sequential(kind(4, 4, 3), nn.ReLU()), x)
    assert any(d.pattern.endswith(" + relu") for d in report.decisions)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)],
    ids=lambda pool: type(pool).__name__,
)
def test_pooling_of_a_single_picture_lowers(pool: nn.Module) -> None:
    torch.manual_seed(0)
    lowered_like_float(nn.Sequential(nn.Conv2d(4, 4, 1), pool), X[0].reshape(4, 4, 2))


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
    lowered_like_float(nn.Sequential(nn.Conv1d(4, 4, 1), pool), x)


@pytest.mark.parametrize("pool", [functional.avg_pool1d, functional.max_pool1d])
def test_pooling_whose_stride_is_its_size_lowers(pool: Callable[..., torch.Tensor]) -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return pool(x * 0.5, 3, ceil_mode=True)

    lowered_like_float(Pool(), X)


def test_an_infinite_bound_of_what_stays_in_float_stays_infinite() -> None:
    class Bounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).clamp(0, float("inf"))

    q = quantizer().set_operator_type(aten.clamp.default, None)
    graph = q.transform_for_annotation(captured(Bounded(), X))
    assert float(graph(X * 1000).max()) > 255


def test_what_is_added_is_on_the_device_of_the_model() -> None:
    with torch.device("meta"):
        model, x = nn.Conv2d(3, 4, 3, bias=False), torch.empty(1, 3, 8, 8)
    graph = quantizer().transform_for_annotation(captured(model, x))
    assert {parameter.device.type for parameter in graph.parameters()} == {"meta"}


class Distances(nn.Module):
    """What models of text add to their scores: a value for each distance between two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(4)
        distances = (places[:, None] - places).abs().clamp(max=3)
        return x.transpose(1, 2) @ self.table(distances).sum(-1)


def test_what_depends_on_no_input_is_computed_once() -> None:
    model = Distances()
    graph = quantizer().transform_for_annotation(captured(model, X))
    torch.testing.assert_close(graph(X), model(X))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert not {aten.arange.default, aten.embedding.default, aten.sum.dim_IntList} & set(targets)
