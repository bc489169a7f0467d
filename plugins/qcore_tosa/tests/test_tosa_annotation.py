"""The support table at work: where the qspecs go, what is fused, what shares a range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

import qcore
from qcore_tosa import (
    TosaQuantizer,
    get_symmetric_a16w8_quantization_config,
    get_symmetric_quantization_config,
)

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
VECTOR = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(modules)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*self.layers, *inputs)


def quantizer(config: Any = None, spec: str = "TOSA-1.0+INT+int16+cf") -> TosaQuantizer:
    return TosaQuantizer(spec).set_global(config or get_symmetric_quantization_config())


def converted(model: nn.Module, *inputs: torch.Tensor, config: Any = None) -> torch.fx.GraphModule:
    """Quantize in torchao's own flow."""
    torch.manual_seed(0)
    graph = torch.export.export(model.eval(), inputs).module()
    prepared = prepare_pt2e(graph, quantizer(config))
    prepared(*inputs)
    return convert_pt2e(prepared)


def node_of(graph: torch.fx.GraphModule, target: Any) -> Node:
    return next(node for node in graph.graph.nodes if node.target is target)


def range_into(node: Node, position: int = 0) -> tuple[float, int]:
    """Return scale and zero point of the dequantize operator before an input."""
    source = node.args[position]
    assert source.target is decomposed.dequantize_per_tensor.default
    return source.args[1], source.args[2]


def range_out_of(node: Node) -> tuple[float, int]:
    """Return scale and zero point of the quantize operator after a value."""
    (user,) = node.users
    assert user.target is decomposed.quantize_per_tensor.default
    return user.args[1], user.args[2]


def test_casts_that_the_passes_insert_are_reported_as_users_write_them() -> None:
    model = Fn(lambda layer, x: layer(x).argmax(1).to(torch.float32), nn.Linear(8, 4))
    q = quantizer()
    q.annotate(q.transform_for_annotation(torch.export.export(model.eval(), (VECTOR,)).module()))
    assert q.report is not None
    casts = [d for d in q.report.decisions if "to_" in d.node or d.node == "to"]
    assert {d.operator for d in casts} == {"aten.to.dtype"}


def test_a_bias_is_int32_with_the_product_of_the_scales() -> None:
    graph = converted(nn.Linear(8, 4), VECTOR)
    linear = node_of(graph, aten.linear.default)
    bias, weight = linear.args[2], linear.args[1]
    scales = {name: value for name, value in graph.named_buffers() if "scale" in name}
    assert getattr(graph, bias.args[0].target).dtype is torch.int32
    activation, _ = range_into(linear)
    torch.testing.assert_close(
        scales[bias.args[1].target], scales[weight.args[1].target] * activation
    )


@pytest.mark.parametrize(
    ("layer", "x", "target"),
    [
        pytest.param(nn.Linear(8, 4, bias=False), VECTOR, aten.linear.default, id="linear"),
        pytest.param(
            nn.Conv2d(3, 4, 3, padding="same", bias=False), IMAGE, aten.conv2d.default, id="same"
        ),
    ],
)
def test_layers_without_a_bias_get_one_that_is_quantized(
    layer: nn.Module, x: torch.Tensor, target: Any
) -> None:
    graph = converted(layer, x)
    bias = node_of(graph, target).args[2]
    assert getattr(graph, bias.args[0].target).dtype is torch.int32


@pytest.mark.parametrize("clamp", [nn.ReLU(), nn.ReLU6(), Fn(lambda x: x.clamp(0, 4))])
def test_clamps_from_zero_on_are_fused_into_the_layer_before(clamp: nn.Module) -> None:
    q = quantizer()
    qcore.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), clamp), q, [IMAGE])
    assert q.report is not None
    (pattern,) = {d.pattern for d in q.report.decisions}
    assert pattern.startswith("conv2d + ")


def test_other_clamps_are_quantized_by_themselves() -> None:
    graph = converted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-0.5, 0.5)), IMAGE)
    range_out_of(node_of(graph, aten.conv2d.default))
    range_out_of(node_of(graph, aten.hardtanh.default))


def test_no_clamp_is_fused_with_16_bit_activations_whose_range_is_symmetric() -> None:
    config = get_symmetric_a16w8_quantization_config()
    graph = converted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGE, config=config)
    _, zero_point = range_out_of(node_of(graph, aten.conv2d.default))
    assert zero_point == 0
    range_out_of(node_of(graph, aten.relu.default))


def test_transposed_convolutions_have_their_scales_along_the_outputs() -> None:
    graph = converted(nn.ConvTranspose2d(4, 4, 3), torch.randn(1, 4, 5, 5))
    weight = node_of(graph, aten.conv_transpose2d.input).args[1]
    assert weight.args[3] == 1


def test_zero_points_are_all_int64_which_is_what_kernels_outside_of_delegates_read() -> None:
    graph = converted(nn.Conv2d(3, 4, 3), IMAGE)
    zero_points = [v for name, v in graph.named_buffers() if "zero_point" in name]
    assert [value.dtype for value in zero_points] == [torch.int64, torch.int64]


@pytest.mark.parametrize(("outputs", "groups"), [(6, 2), (8, 4), (4, 4)])
def test_grouped_transposed_convolutions_are_quantized_by_group(outputs: int, groups: int) -> None:
    model, x = nn.ConvTranspose2d(4, outputs, 3, groups=groups), torch.randn(1, 4, 5, 5)
    graph = converted(model, x)
    layers = [n for n in graph.graph.nodes if n.target is aten.conv_transpose2d.input]
    assert len(layers) == groups
    torch.testing.assert_close(graph(x), model(x).detach(), atol=0.05, rtol=0)


def test_training_of_transposed_convolutions_avoids_the_kernel_for_rows() -> None:
    config = get_symmetric_quantization_config(is_qat=True)
    model, x = nn.ConvTranspose2d(4, 6, 3), torch.randn(1, 4, 5, 5)
    prepared = prepare_qat_pt2e(torch.export.export(model, (x,)).module(), quantizer(config))
    prepared(x)
    graph = convert_pt2e(prepared)
    weight = node_of(graph, aten.conv_transpose2d.input).args[1]
    assert graph.get_buffer(weight.args[1].target).shape == (6,)


def test_both_sides_of_a_comparison_have_one_range() -> None:
    graph = converted(Fn(lambda x: torch.where(x > x * 3, x, -x)), VECTOR)
    compare = node_of(graph, aten.gt.Tensor)
    assert range_into(compare, 0) == range_into(compare, 1)


def test_what_views_and_joins_connect_has_one_range() -> None:
    join = Fn(lambda x: torch.cat([x.reshape(-1) * 1.0, x.flatten() * 9.0]).view(2, -1))
    graph = converted(join, VECTOR)
    cat, view = node_of(graph, aten.cat.default), node_of(graph, aten.view.default)
    assert range_out_of(cat) == range_out_of(view)
    assert {source.args[1:3] for source in cat.args[0]} == {range_out_of(cat)}


def test_a_model_of_data_movement_alone_is_quantized() -> None:
    graph = converted(Fn(lambda x: x.relu().reshape(-1)), VECTOR)
    assert range_into(node_of(graph, aten.relu.default))


def test_data_movement_among_float_operators_stays_in_float() -> None:
    q = TosaQuantizer("TOSA-1.0+FP+INT").set_global(get_symmetric_quantization_config())
    q.set_operator_type(aten.sin.default, None).set_operator_type(aten.cos.default, None)
    model = Fn(lambda x, y: (x.sin().reshape(-1).cos(), y + y))
    report = qcore.quantize(model, q, [(VECTOR, VECTOR)]).report
    assert report["reshape"].scheme is None
    assert "float" in report["reshape"].reason


def test_an_explicit_none_keeps_an_operator_out_of_its_surroundings() -> None:
    q = TosaQuantizer("TOSA-1.0+FP+INT").set_global(get_symmetric_quantization_config())
    q.set_node_name("permute", None)
    report = qcore.quantize(Fn(lambda x: (x * 2).permute(1, 0) + 1), q, [VECTOR]).report
    assert report["permute"].reason == "set_node_name('permute', None) leaves it in float"
    assert report["mul"].is_quantized
    assert report["add"].is_quantized


def test_functions_of_a_fixed_interval_keep_to_it() -> None:
    graph = converted(Fn(torch.atanh), VECTOR * 0.9)
    scale, zero_point = range_into(node_of(graph, aten.atanh.default))
    assert zero_point == 0
    assert scale * 127 < 1


def test_integers_keep_their_scalars_and_their_type() -> None:
    model = Fn(lambda table, ids: table(ids + 1), nn.Embedding(8, 4))
    ids = torch.tensor([[1, 2, 3]])
    graph = converted(model, ids)
    torch.testing.assert_close(graph(ids), model(ids), atol=0.05, rtol=0)
    assert node_of(graph, aten.add.Tensor).args[1] == 1


@pytest.mark.parametrize(
    "constant",
    [
        pytest.param(lambda: torch.full((8,), 1e30), id="full"),
        pytest.param(lambda: torch.full((8,), float("inf")), id="infinite"),
        pytest.param(lambda: aten.scalar_tensor(1e30), id="scalar_tensor"),
        pytest.param(lambda: torch.linspace(-1e30, 0, 8), id="linspace"),
    ],
)
def test_constants_beyond_every_range_do_not_spoil_a_range(
    constant: Callable[[], torch.Tensor],
) -> None:
    graph = converted(Fn(lambda x: x + constant().clamp(-1.0, 1.0)), VECTOR)
    assert graph(VECTOR).isfinite().all()


@pytest.mark.parametrize("function", [torch.sin, torch.relu])
def test_float16_is_refused_with_what_to_do(function: Callable[..., Any]) -> None:
    with pytest.raises(qcore.errors.SelectionError, match="Cast the model to float32 first"):
        qcore.quantize(Fn(lambda x: function(x)), quantizer(), [VECTOR.half()])


def test_annotating_needs_no_time_that_grows_faster_than_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Generating a graph's code is what ExecuTorch's passes spend their time on."""
    from torch.fx import GraphModule

    generated: list[int] = []
    original = GraphModule.recompile
    monkeypatch.setattr(
        GraphModule, "recompile", lambda self: (generated.append(1), original(self))[1]
    )
    counts = []
    for layers in (4, 16):
        model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])
        graph = torch.export.export(model, (VECTOR,)).module()
        generated.clear()
        quantizer().transform_for_annotation(graph)
        counts.append(len(generated))
    assert counts[0] == counts[1]


def test_what_fills_a_mask_is_limited_to_what_leaves_the_other_values_a_range() -> None:
    lowest = torch.finfo(torch.float32).min
    filled = Fn(lambda x: torch.softmax((x * 2.0).masked_fill(x > 0, lowest), -1))
    chosen = Fn(lambda x: torch.softmax(torch.where(x > 0, torch.scalar_tensor(lowest), x), -1))
    for masked in (filled, chosen):
        scale, _ = range_out_of(node_of(converted(masked, VECTOR), aten.where.self))
        assert scale < 2
