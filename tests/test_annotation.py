"""Patterns: what is fused, what shares a range, what is never touched."""

from __future__ import annotations

import cProfile
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.annotation import (
    ElementwiseRule,
    GemmRule,
    OperatorMatch,
    OperatorPattern,
    PassThroughRule,
    Rejection,
    SupportTable,
    annotate_graph,
)
from qcore.annotation.rules import annotation_of
from qcore.errors import QcoreWarning
from qcore.quantizer import Quantizer
from qcore.schemes import QuantizationScheme
from qcore.testing import Fn
from qcore.testing.models import ZOO

aten = torch.ops.aten
Build = Callable[[], Quantizer]
Capture = Callable[..., GraphModule]

IMAGE = torch.randn(1, 3, 8, 8)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "relu_": torch.relu_,
    "hardtanh": nn.functional.hardtanh,
    "hardtanh_": nn.functional.hardtanh_,
    "relu6": nn.functional.relu6,
    "clamp": lambda x: x.clamp(0, 6),
}

ROOTS: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "conv2d": (Fn(lambda m, x: m.layer(x), layer=conv()), (IMAGE,)),
    "linear": (Fn(lambda m, x: m.layer(x), layer=nn.Linear(8, 4)), (IMAGE,)),
    "add": (Fn(lambda m, x, y: x + y), (IMAGE, IMAGE + 1)),
    "mul": (Fn(lambda m, x, y: x * y), (IMAGE, IMAGE + 1)),
}


def annotated(quantizer: Quantizer, graph: GraphModule) -> GraphModule:
    graph = quantizer.transform_for_annotation(graph)
    quantizer.annotate(graph)
    return graph


def find(graph: GraphModule, target: Any) -> list[Node]:
    return [n for n in graph.graph.nodes if n.op == "call_function" and n.target == target]


def quantize_ops(graph: GraphModule) -> int:
    return len(find(graph, torch.ops.quantized_decomposed.quantize_per_tensor.default))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("root", ROOTS)
def test_a_clamping_activation_is_fused_into_the_operator_before_it(
    toy: Build, capture: Capture, root: str, activation: str
) -> None:
    model, inputs = ROOTS[root]
    fused = Fn(lambda m, *x: ACTIVATIONS[activation](m.model(*x)), model=model)
    quantizer = toy().set_global("8a8w")
    graph = annotated(quantizer, capture(fused, *inputs))
    decisions = quantizer.report.quantized  # type: ignore[union-attr]
    assert len(decisions) == 2
    assert {d.pattern.split(" + ")[0] for d in decisions} == {root}
    operator = next(n for n in graph.graph.nodes if n.name == decisions[0].node)
    after = next(n for n in graph.graph.nodes if n.name == decisions[1].node)
    assert annotation_of(operator).output_qspec is None  # type: ignore[union-attr]
    assert annotation_of(after).output_qspec is not None  # type: ignore[union-attr]
    assert not annotation_of(after).input_qspec_map  # type: ignore[union-attr]


def test_a_value_with_a_second_user_is_never_fused_over(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x)
        return torch.relu(y) + y

    quantizer = toy().set_global("8a8w")
    graph = annotated(quantizer, capture(Fn(function, layer=conv()), IMAGE))
    (operator,) = find(graph, aten.conv2d.default)
    assert annotation_of(operator).output_qspec is not None  # type: ignore[union-attr]
    assert quantizer.report["conv2d"].pattern == "conv2d"  # type: ignore[index]


def test_an_activation_left_in_float_is_not_fused(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: m.act(m.layer(x)), layer=conv(), act=nn.ReLU())
    quantizer = toy().set_global("8a8w").set_module_name("act", None)
    annotated(quantizer, capture(model, IMAGE))
    assert quantizer.report["conv2d"].pattern == "conv2d"  # type: ignore[index]
    assert quantizer.report["relu"].reason == "set_module_name('act', None) leaves it in float"  # type: ignore[index]


def test_an_activation_that_no_rule_selects_is_fused(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: m.act(m.layer(x)), layer=conv(), act=nn.ReLU())
    quantizer = toy().set_module_name("layer", "8a8w")
    annotated(quantizer, capture(model, IMAGE))
    assert quantizer.report["relu"].pattern == "conv2d + relu"  # type: ignore[index]


def test_data_movers_share_the_range_of_their_input(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.max_pool2d(m.layer(x), 2)
        return y.permute(0, 2, 3, 1)[:, 1:].reshape(1, -1)

    model = Fn(function, layer=conv())
    graph = capture(model, IMAGE)
    prepared = prepare_pt2e(graph, toy().set_global("8a8w"))
    observers = {
        str(user.target)
        for node in prepared.graph.nodes
        if node.target in (aten.conv2d.default, aten.max_pool2d.default, aten.permute.default)
        for user in node.users
    }
    assert len(observers) > 1
    assert len({id(getattr(prepared, name)) for name in observers}) == 1


def test_a_long_chain_of_views_does_not_recurse(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x)
        for index in range(600):
            y = y.view(1, -1) if index % 2 else y.view(3, -1)
        return y

    prepared = prepare_pt2e(capture(Fn(function, layer=conv()), IMAGE), toy().set_global("8a8w"))
    assert len(find(prepared, aten.view.default)) == 600


def test_a_mover_of_float_data_stays_in_float_and_says_why(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: m.layer(x.permute(0, 1, 3, 2)), layer=conv())
    quantizer = toy().set_global("8a8w")
    annotated(quantizer, capture(model, IMAGE))
    assert "its input is in float" in quantizer.report["permute"].reason  # type: ignore[index]


def test_a_mover_that_follows_its_input_passes_the_checks_of_its_row(
    toy_backend: type, capture: Capture
) -> None:
    def not_flat(match: OperatorMatch, config: Any, model: GraphModule) -> Rejection | None:
        assert config.output_activation is not None
        return Rejection("too flat") if match.root.args[1] == [3, 64] else None

    row = OperatorPattern(
        "view", (aten.view.default,), PassThroughRule(), follows_input=True, checks=(not_flat,)
    )
    table = SupportTable((OperatorPattern("conv2d", (aten.conv2d.default,), GemmRule()), row))

    class Flat(toy_backend):
        @qcore.hookimpl
        def annotate(self, model: GraphModule, plan: Any) -> Any:
            return annotate_graph(model, plan, table, "flat")

    model = Fn(lambda m, x: m.layer(x).view(1, 192).view(3, 64).view(-1), layer=conv())
    quantizer = Quantizer(Flat(), name="flat").set_module_name("layer", "8a8w")
    annotated(quantizer, capture(model, IMAGE))
    report = quantizer.report
    assert report["view"].is_quantized  # type: ignore[index]
    assert report["view_1"].reason == "too flat"  # type: ignore[index]
    assert not report["view_2"].is_quantized  # type: ignore[index]


def test_the_inputs_of_cat_share_one_range(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: torch.cat([m.a(x), m.b(x) * 100.0], 1), a=conv(), b=conv())
    prepared = prepare_pt2e(capture(model, IMAGE), toy().set_global("8a8w"))
    (cat,) = find(prepared, aten.cat.default)
    names = [str(node.target) for node in (*cat.all_input_nodes, *cat.users)]
    assert len({id(getattr(prepared, name)) for name in names}) == 1


def test_concatenating_a_value_with_itself_works(toy: Build, capture: Capture) -> None:
    graph = capture(Fn(lambda m, x: torch.cat([x, x])), IMAGE)
    prepared = prepare_pt2e(graph, toy().set_global("8a8w"))
    prepared(IMAGE)
    assert quantize_ops(convert_pt2e(prepared)) == 2


def test_a_shared_weight_is_quantized_alike_for_both_users(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(m.a(x), m.a.weight)

    prepared = prepare_pt2e(
        capture(Fn(function, a=nn.Linear(4, 4)), torch.randn(2, 4)), toy().set_global("8a8w")
    )
    prepared(torch.randn(2, 4))
    converted = convert_pt2e(prepared)
    weights = {
        n.args[0].target  # type: ignore[union-attr]
        for n in find(converted, torch.ops.quantized_decomposed.dequantize_per_channel.default)
    }
    assert len(weights) == 1


def test_a_weight_computed_from_parameters_is_quantized(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: nn.functional.linear(x, m.a.weight.t()), a=nn.Linear(4, 4))
    quantizer = toy().set_global("8a8w")
    annotated(quantizer, capture(model, torch.randn(2, 4)))
    assert quantizer.report["linear"].is_quantized  # type: ignore[index]


def test_a_weight_from_the_models_inputs_stays_in_float(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x, w: nn.functional.linear(x, w) + x)
    quantizer = toy().set_global("8a8w")
    annotated(quantizer, capture(model, torch.randn(4, 4), torch.randn(4, 4)))
    assert quantizer.report["linear"].reason == "its weight is computed at run time"  # type: ignore[index]


@pytest.mark.parametrize("scalar", [2, 2.5, -1])
def test_a_scalar_operand_of_float_arithmetic_is_quantized(
    toy: Build, capture: Capture, scalar: float
) -> None:
    model = Fn(lambda m, x: (x + scalar) * scalar)
    prepared = prepare_pt2e(capture(model, IMAGE), toy().set_global("8a8w"))
    prepared(IMAGE)
    converted = convert_pt2e(prepared)
    assert quantize_ops(converted) == 3  # Those of the two constants are folded.
    values = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    assert len(find(converted, values)) == 5
    assert torch.allclose(prepared(IMAGE), model(IMAGE))


def test_integer_arithmetic_keeps_its_scalars_and_its_dtype(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return m.layer(x)[:, (index + 1) * 2]

    model = Fn(function, layer=nn.Linear(8, 8))
    inputs = (torch.randn(2, 8), torch.tensor([0, 1]))
    result = qcore.quantize(model, toy().set_global("8a8w"), [inputs])
    assert result.model(*inputs).shape == (2, 2)
    assert "int64" in result.report["add"].reason


def test_a_constant_too_large_for_a_histogram_stays_in_float(toy: Build, capture: Capture) -> None:
    quantizer = toy().set_global("8a8w")
    with pytest.warns(QcoreWarning, match="Nothing is quantized"):
        annotated(quantizer, capture(Fn(lambda m, x: x * 3.4e38), IMAGE))
    assert "too large to quantize" in quantizer.report["mul"].reason  # type: ignore[index]


def test_half_precision_is_left_alone_with_advice(toy: Build, capture: Capture) -> None:
    quantizer = toy().set_global("8a8w")
    with pytest.warns(QcoreWarning):
        annotated(quantizer, capture(nn.Linear(8, 8).half(), IMAGE.half()))
    decision = quantizer.report["linear"]  # type: ignore[index]
    assert "float16" in decision.reason
    assert "Cast the model to float32" in decision.advice


def test_dynamic_schemes_leave_what_they_do_not_cover_with_a_reason(
    toy: Build, capture: Capture
) -> None:
    model = Fn(lambda m, x: m.act(m.head(m.layer(x).flatten(1))), layer=conv(),
               head=nn.Linear(192, 2), act=nn.ReLU())  # fmt: skip
    quantizer = toy().set_global("8da8w")
    annotated(quantizer, capture(model, IMAGE))
    report = quantizer.report
    assert report is not None
    assert report["linear"].scheme == "8da8w dynamic per-channel"
    assert "static activations only" in report["conv2d"].reason


def test_static_and_dynamic_mix_in_one_model(toy: Build, capture: Capture) -> None:
    model = Fn(lambda m, x: m.head(m.layer(x).flatten(1)), layer=conv(), head=nn.Linear(192, 2))
    quantizer = toy().set_global("8a8w").set_module_name("head", "8da8w")
    result = qcore.quantize(model, quantizer, [IMAGE])
    schemes = {d.operator: d.scheme for d in result.report.quantized}
    assert schemes["aten.conv2d.default"] == "8a8w static per-channel"
    assert schemes["aten.linear.default"] == "8da8w dynamic per-channel"


def test_none_leaves_a_layer_in_float_exactly(toy: Build) -> None:
    model = nn.Sequential(conv(), conv(), nn.ReLU(), conv()).eval()
    quantizer = toy().set_global("8a8w").set_module_name("1", None)
    result = qcore.quantize(model, quantizer, [IMAGE])
    operators = find(result.model, aten.conv2d.default)
    assert [n.args[1].op == "get_attr" for n in operators] == [False, True, False]  # type: ignore[union-attr]


def test_every_compute_node_has_a_decision(toy: Build, capture: Capture) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(m.layer(x)).softmax(1) * m.norm(x)

    graph = capture(Fn(function, layer=conv(), norm=nn.LayerNorm(8)), IMAGE)
    quantizer = toy().set_global("8a8w")
    annotated(quantizer, graph)
    report = quantizer.report
    assert report is not None
    computed = [n.name for n in graph.graph.nodes if n.op == "call_function"]
    assert [d.node for d in report.decisions] == computed
    assert all(d.is_quantized or d.reason for d in report.decisions)
    assert report["sigmoid"].advice == "Use hardsigmoid."


def test_the_report_prints_and_is_json(toy: Build, capture: Capture) -> None:
    quantizer = toy().set_global("8a8w").set_module_name("b", None)
    model = Fn(lambda m, x: m.b(m.a(x)), a=conv(), b=conv())
    annotated(quantizer, capture(model, IMAGE))
    report = quantizer.report
    assert report is not None
    assert "toy: 1 of 2 compute nodes quantized, 1 in float" in str(report)
    assert "set_module_name('b', None) leaves it in float [b/conv2d_1]" in str(report)
    data = json.loads(report.to_json())
    assert (data["quantized"], data["float"]) == (1, 1)
    assert data["decisions"][0]["scheme"] == "8a8w static per-channel"


def test_annotating_twice_changes_nothing(toy: Build, capture: Capture) -> None:
    graph = capture(Fn(lambda m, x: torch.relu(m.a(x)), a=conv()), IMAGE)
    quantizer = toy().set_global("8a8w")
    annotated(quantizer, graph)
    first, before = quantizer.report, {n: annotation_of(n) for n in graph.graph.nodes}
    quantizer.annotate(graph)
    assert quantizer.report == first
    assert all(annotation_of(n) is before[n] for n in graph.graph.nodes)


def test_annotations_of_another_quantizer_are_kept(toy: Build, capture: Capture) -> None:
    graph = capture(Fn(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()), IMAGE)
    first = toy().set_module_name("a", "8a8w per-tensor")
    annotated(first, graph)
    graph.meta.clear()
    second = toy().set_global("8a8w")
    annotated(second, graph)
    assert second.report["conv2d"].reason == "another quantizer has annotated it"  # type: ignore[index]
    assert second.report["conv2d_1"].is_quantized  # type: ignore[index]


def test_io_rules_quantize_the_inputs_and_outputs(toy: Build, capture: Capture) -> None:
    graph = capture(Fn(lambda m, x: torch.sigmoid(x)), IMAGE)
    with pytest.warns(QcoreWarning, match="Nothing is quantized"):
        prepared = prepare_pt2e(graph, toy().set_io("8a8w"))
    prepared(IMAGE)
    assert quantize_ops(convert_pt2e(prepared)) == 2


def test_guards_never_stop_an_annotation(toy: Build) -> None:
    graph = torch.export.export(conv().eval(), (IMAGE,)).module()
    assert any(n.op == "call_module" for n in graph.graph.nodes)
    prepared = prepare_pt2e(graph, toy().set_global("8a8w"))
    prepared(IMAGE)
    assert quantize_ops(convert_pt2e(prepared)) == 2


def test_quantizing_nothing_warns_in_the_standard_flow(toy: Build, capture: Capture) -> None:
    with pytest.warns(QcoreWarning, match=r"no rule was set. .*set_global\('8a8w'\)"):
        prepare_pt2e(capture(conv(), IMAGE), toy())


def test_an_operator_in_two_rows_of_a_table_is_an_error() -> None:
    row = OperatorPattern("add", (aten.add.Tensor,), ElementwiseRule())
    with pytest.raises(ValueError, match="aten.add.Tensor stands in two rows"):
        SupportTable((row, row))


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    choices=st.lists(
        st.sampled_from(["conv", "relu", "branch", "cat", "permute", "add", "sigmoid"]),
        min_size=1,
        max_size=8,
    )
)
def test_any_graph_prepares_converts_and_stays_close(toy_backend: type, choices: list[str]) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(conv() for _ in choices)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convs[0](x)
            for layer, choice in zip(self.convs, choices, strict=True):
                y = {
                    "conv": lambda y, layer=layer: layer(y),
                    "relu": torch.relu,
                    "branch": lambda y: torch.relu(y) + y,
                    "cat": lambda y: torch.cat([y, x], 2)[:, :, :8],
                    "permute": lambda y: y.permute(0, 1, 3, 2),
                    "add": lambda y: y + 0.5,
                    "sigmoid": torch.sigmoid,
                }[choice](y)
            return y

    torch.manual_seed(0)
    model = Random().eval()
    quantizer = Quantizer(toy_backend(), name="toy").set_global("8a8w")
    result = qcore.quantize(model, quantizer, [IMAGE])
    expected, got = model(IMAGE), result.model(IMAGE)
    noise = (expected - got).pow(2).mean() / expected.pow(2).mean().clamp(min=1e-6)
    assert noise < 0.05


def test_the_work_of_annotation_is_linear_in_the_number_of_layers(toy: Build) -> None:
    calls = []
    for count in (50, 200, 800):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(count)))
        graph = torch.export.export(model.eval(), (torch.randn(1, 4),)).module()
        quantizer = toy().set_global("8a8w").set_module_name("*.1", "8a8w")
        # Calls are counted, not timed: the machine's load does not matter.
        profile = cProfile.Profile()
        profile.runcall(annotated, quantizer, graph)
        calls.append(sum(entry.callcount for entry in profile.getstats()))
        assert len(quantizer.report.quantized) == 2 * count  # type: ignore[union-attr]
    assert calls[1] < 4.2 * calls[0]
    assert calls[2] < 4.2 * calls[1]


def test_a_weight_only_configuration_quantizes_nothing_without_a_weight(
    toy_backend: type, capture: Capture
) -> None:
    schemes = qcore.hookimpl(lambda self: [QuantizationScheme(8, None)])
    backend = type("WeightOnly", (toy_backend,), {"supported_schemes": schemes})()
    quantizer = Quantizer(backend, name="toy").set_global("8w")
    annotated(quantizer, capture(Fn(lambda m, x: m.layer(x) + x, layer=conv()), IMAGE))
    report = quantizer.report
    assert [d.operator for d in report.quantized] == ["aten.conv2d.default"]
    assert "it has no weight" in report["add"].reason


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_every_call_of_a_shared_layer_has_the_bias_scale_of_its_own_input(
    toy_backend: Any, granularity: str
) -> None:
    rule = OperatorPattern("linear", (aten.linear.default,), GemmRule(integer_bias=True))

    class IntegerBias(toy_backend):  # type: ignore[misc]
        @qcore.hookimpl
        def annotate(self, model: GraphModule, plan: Any) -> Any:
            return annotate_graph(model, plan, SupportTable((rule,)), "toy")

    quantizer = Quantizer(IntegerBias(), name="toy").set_global(f"8a8w {granularity}")
    shared = ZOO["shared_weights"]
    model = qcore.quantize(shared.module(), quantizer, shared.samples).model
    calls = find(model, aten.linear.default)
    assert len(calls) == 2
    for call in calls:
        activation, weight, bias = (scale_of(model, node) for node in call.args)
        torch.testing.assert_close(bias, activation * weight, rtol=1e-6, atol=0)


def scale_of(model: GraphModule, dequantize: Any) -> torch.Tensor:
    scale = dequantize.args[1]
    return model.get_buffer(scale.target) if isinstance(scale, Node) else torch.tensor(scale)
