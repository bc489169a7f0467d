"""Forms: operators that a backend lacks, written as others that its table has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from qcore.annotation import ElementwiseRule, GemmRule, OperatorPattern, SupportTable
from qcore.annotation.forms import FORMS, Written, always, in_quantizable_forms
from qcore.graph import ORIGINAL_NAME, ORIGINAL_TARGET
from qcore.plan import QuantizationPlan, RuleKind, Selectors
from qcore.schemes import get_symmetric_quantization_config

aten = torch.ops.aten
IMAGE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """A function of the input and of submodules."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def captured(model: nn.Module, x: torch.Tensor = IMAGE) -> GraphModule:
    return torch.export.export(model.eval(), (x,)).module(check_guards=False)


def plan(**options: Any) -> QuantizationPlan:
    selectors = Selectors()
    selectors.add(RuleKind.GLOBAL, "", get_symmetric_quantization_config(**options))
    return QuantizationPlan(selectors)


def table(*targets: Any) -> SupportTable:
    return SupportTable(OperatorPattern(str(t), (t,), ElementwiseRule()) for t in targets)


CONVOLUTIONS = SupportTable((OperatorPattern("conv2d", (aten.conv2d.default,), GemmRule()),))


def targets(model: GraphModule) -> list[Any]:
    return [node.target for node in model.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("model", [nn.BatchNorm2d(4), nn.Softplus(), nn.AdaptiveMaxPool2d(2)])
def test_what_a_table_cannot_hold_is_left_untouched(model: nn.Module) -> None:
    graph = captured(model)
    before, names = str(graph.graph), list(graph.state_dict())
    in_quantizable_forms(graph, plan(), table(aten.relu.default), FORMS)
    assert (str(graph.graph), list(graph.state_dict())) == (before, names)


def test_a_batch_norm_by_itself_becomes_a_convolution_with_constants_of_its_own() -> None:
    model = nn.BatchNorm2d(4).eval()
    model.running_mean = torch.rand(4)
    graph = captured(model)
    in_quantizable_forms(graph, plan(), CONVOLUTIONS, FORMS)
    assert targets(graph) == [aten.conv2d.default]
    graph.recompile()
    torch.testing.assert_close(graph(IMAGE), model(IMAGE))


def test_a_batch_norm_that_training_folds_into_its_layer_is_kept() -> None:
    graph = captured(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    in_quantizable_forms(graph, plan(is_qat=True), CONVOLUTIONS, FORMS)
    assert aten.batch_norm.default in targets(graph)


@pytest.mark.parametrize("size", [3, 4], ids=["odd", "even"])
@pytest.mark.parametrize("options", [{}, {"is_dynamic": True}, {"is_qat": True}], ids=str)
def test_same_padding_is_written_out(size: int, options: dict[str, bool]) -> None:
    model = nn.Conv2d(4, 4, size, padding="same")
    graph = captured(model)
    known = SupportTable((*CONVOLUTIONS, *table(aten.pad.default)))
    in_quantizable_forms(graph, plan(**options), known, FORMS)
    assert targets(graph)[-1] is aten.conv2d.default
    graph.recompile()
    torch.testing.assert_close(graph(IMAGE), model(IMAGE))


def test_a_written_value_keeps_its_name_and_remembers_its_operator() -> None:
    graph = captured(Of(lambda m, x: torch.lerp(x, x * 2, 0.5)))
    known = table(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
    in_quantizable_forms(graph, plan(), known, FORMS)
    named = {node.name: node for node in graph.graph.nodes}
    assert named["lerp"].target is aten.add.Tensor
    for node in named.values():
        if node.target in (aten.add.Tensor, aten.sub.Tensor):
            assert node.meta[ORIGINAL_NAME] == "lerp"
            assert node.meta[ORIGINAL_TARGET] is aten.lerp.Scalar


def test_what_nothing_reads_of_several_values_is_dropped() -> None:
    graph = captured(Of(lambda m, x: x.chunk(2, 1)[1] * 2))
    halves = always(lambda x, *_: (x[:, :2], x[:, 2:]))
    known = table(aten.slice.Tensor, aten.mul.Tensor)
    in_quantizable_forms(graph, plan(), known, {aten.chunk.default: halves})
    graph.recompile()
    torch.testing.assert_close(graph(IMAGE), IMAGE[:, 2:] * 2)
    assert all(node.users for node in graph.graph.nodes if node.op == "call_function")


def test_a_tensor_among_the_arguments_becomes_a_constant() -> None:
    graph = captured(Of(lambda m, x: x.exp2()))
    doubled = Written(aten.mul.Tensor, ("filled in below", torch.tensor(2.0)))

    def form(model: GraphModule, node: torch.fx.Node) -> Written:
        return Written(doubled.function, (node.args[0], doubled.arguments[1]))

    in_quantizable_forms(graph, plan(), table(aten.mul.Tensor), {aten.exp2.default: form})
    graph.recompile()
    assert torch.equal(graph(IMAGE), IMAGE * 2)
    assert len(list(graph.buffers())) == 1


def test_composites_are_decomposed_on_request_only() -> None:
    known = table(aten.permute.default)
    for composites, expected in ((False, aten.movedim.intlist), (True, aten.permute.default)):
        graph = captured(Of(lambda m, x: torch.movedim(x, (0, 1), (1, 0))))
        in_quantizable_forms(graph, plan(), known, {}, composites=composites)
        assert targets(graph) == [expected]


def test_what_stays_in_float_keeps_its_form() -> None:
    graph = captured(Of(lambda m, x: x.square()))
    in_quantizable_forms(graph, QuantizationPlan(Selectors()), table(aten.mul.Tensor), FORMS)
    assert targets(graph) == [aten.square.default]
