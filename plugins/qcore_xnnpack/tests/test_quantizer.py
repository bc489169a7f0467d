"""The quantizer: drop-in names, schemes, mixing, training, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationConfig, Quantizer

import qcore
from qcore.errors import LoweringError, UnsupportedSchemeError
from qcore_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_both_ways_to_a_quantizer_give_a_torchao_quantizer() -> None:
    for quantizer in (XNNPACKQuantizer(), qcore.get_quantizer("xnnpack")):
        assert isinstance(quantizer, Quantizer)
        assert quantizer.name == "xnnpack"


def test_a_script_written_for_executorch_runs_with_the_import_changed() -> None:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    graph = torch.export.export(Net().eval(), (X,)).module()
    prepared = prepare_pt2e(graph, quantizer)
    prepared(X)
    converted = convert_pt2e(prepared)
    assert torch.int8 in {b.dtype for b in converted.buffers()}


def test_the_schemes_are_declared_as_data() -> None:
    names = {str(scheme) for scheme in XNNPACKQuantizer().supported_schemes}
    assert {
        "8a8w static per-channel",
        "8a8w static per-tensor",
        "8da8w dynamic per-channel",
        "8da8w dynamic per-tensor",
        "8a8w static per-channel QAT",
    } <= names


def test_narrower_weights_are_stored_as_int8_and_run(through: Callable[..., Any]) -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, weight_qmin=-7, weight_qmax=7)
    run = through(nn.Linear(8, 8), X, scheme=config)
    assert run.result.report["linear"].scheme == "8a4w static per-channel"
    assert run.program.report.is_fully_delegated
    assert run.steps.max() <= 1.01


def test_weight_only_is_refused_with_the_reason() -> None:
    weight = get_symmetric_quantization_config().weight
    config = QuantizationConfig(None, None, weight, None)
    with pytest.raises(UnsupportedSchemeError) as caught:
        XNNPACKQuantizer().set_global(config)
    assert "xnnpack does not execute weight-only quantization" in str(caught.value)
    assert "Pass a configuration with input_activation set" in str(caught.value)


def test_16_bit_activations_are_refused() -> None:
    with pytest.raises(UnsupportedSchemeError, match="xnnpack does not execute 16a8w"):
        XNNPACKQuantizer().set_global("16a8w")


def test_static_and_dynamic_parts_run_in_one_program() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    quantizer = XNNPACKQuantizer().set_global("8a8w").set_module_name("head", "8da8w")
    result = qcore.quantize(model, quantizer, [X, X * 2])
    schemes = {d.operator: d.scheme for d in result.report.quantized}
    assert schemes["aten.conv2d.default"] == "8a8w static per-channel"
    assert schemes["aten.linear.default"] == "8da8w dynamic per-channel"
    program = quantizer.lower(result.model, (X,))
    assert program.report.undelegated == ()
    assert (program.run(X) - model(X)).abs().max() < 0.1


def test_a_module_left_in_float_is_float_in_the_program() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    quantizer = XNNPACKQuantizer().set_global("8a8w").set_module_name("head", None)
    result = qcore.quantize(model, quantizer, [X, X * 2])
    assert [d.operator for d in result.report.in_float] == ["aten.linear.default"]
    program = quantizer.lower(result.model, (X,))
    assert (program.run(X) - result.model(X)).abs().max() < 0.05


@pytest.mark.usefixtures("quick_fusions")
@pytest.mark.parametrize("is_per_channel", [True, False])
def test_quantization_aware_training_ends_in_an_int8_program(is_per_channel: bool) -> None:
    torch.manual_seed(0)
    model = Net().train()
    graph = torch.export.export(model, (X,)).module()
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel, is_qat=True)
    quantizer = XNNPACKQuantizer().set_global(config)
    prepared = prepare_qat_pt2e(graph, quantizer)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (prepared(X) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    converted = convert_pt2e(move_exported_model_to_eval(prepared))
    program = quantizer.lower(converted, (X,))
    assert program.report.delegates == 1
    assert (program.run(X) - converted(X)).abs().max() < 0.1


def test_dynamic_batch_sizes_reach_the_program() -> None:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    quantizer = XNNPACKQuantizer().set_global("8a8w")
    result = qcore.quantize(Net().eval(), quantizer, [X, X * 2], dynamic_shapes=shapes)
    program = quantizer.lower(result.model, (X,))
    assert program.report.is_fully_delegated
    for size in (1, 2, 7):
        batch = X[:1].repeat(size, 1, 1, 1)
        assert (program.run(batch) - result.model(batch)).abs().max() < 0.05


def test_channels_last_inputs_neither_crash_nor_change_the_result() -> None:
    torch.manual_seed(0)
    image = X.to(memory_format=torch.channels_last)
    quantizer = XNNPACKQuantizer().set_global("8a8w")
    result = qcore.quantize(Net().eval(), quantizer, [image])
    program = quantizer.lower(result.model, (image,))
    assert torch.equal(program.run(image), program.run(X))


def test_rewritten_operators_keep_the_names_that_rules_and_reports_use() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.conv(x).chunk(2, 1)
            return (first + second).mean((2, 3)).unsqueeze(0)

    graph = torch.export.export(Moves().eval(), (X,)).module()
    names = [n.name for n in graph.graph.nodes if n.op == "call_function"]
    quantizer = XNNPACKQuantizer().set_global("8a8w").set_node_name("unsqueeze", None)
    prepare_pt2e(graph, quantizer)
    assert quantizer.report is not None
    decided = {d.node: d for d in quantizer.report.decisions}
    assert {"conv2d", "add", "mean", "unsqueeze"} <= set(decided) & set(names)
    assert decided["unsqueeze"].reason == "set_node_name('unsqueeze', None) leaves it in float"


@pytest.mark.parametrize(
    ("move", "reason"),
    [
        (lambda x: x[:, ::2], "slices with step 1 only, not 2"),
        (lambda x: nn.functional.pad(x, (1, 1), mode="reflect"), "pads with constants only"),
    ],
)
def test_data_that_xnnpack_cannot_move_in_int8_is_not_called_quantized(
    move: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return move(self.head(x))

    quantizer = XNNPACKQuantizer().set_module_name("head", "8a8w")
    report = qcore.quantize(Moved().eval(), quantizer, [X[0]]).report
    (left,) = report.in_float
    assert reason in left.reason


def test_an_unknown_option_of_lower_names_the_options() -> None:
    quantizer = XNNPACKQuantizer().set_global("8a8w")
    result = qcore.quantize(nn.Linear(8, 4), quantizer, [X])
    options = "check, constant_methods, threads, timeout_s"
    with pytest.raises(LoweringError, match=f"Did you mean 'threads'.* Its options: {options}"):
        quantizer.lower(result.model, (X,), thread=1)


def test_lowering_a_model_that_is_no_graph_says_what_to_do_first() -> None:
    with pytest.raises(LoweringError, match=r"Cannot lower a .*Linear.*qcore.quantize"):
        XNNPACKQuantizer().set_global("8a8w").lower(nn.Linear(8, 4), (X,))  # type: ignore[arg-type]


def test_a_conditional_runs_on_both_paths() -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y), (x,))

    torch.manual_seed(0)
    quantizer = XNNPACKQuantizer().set_global("8a8w")
    samples = [torch.rand(2, 4), -torch.rand(2, 4)]
    converted = quantizer.quantize_with_submodules(Cond().eval(), samples)
    program = quantizer.lower(converted, (samples[0],))
    for sample in samples:
        assert torch.allclose(program.run(sample), converted(sample), atol=0.02)


@pytest.mark.parametrize("scheme", ["8a8w", "8da8w per-tensor"])
def test_a_converted_model_is_exported_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.linear(x, self.weight * 2)
            return torch.hypot(x, x)

    x = torch.randn(2, 8)
    quantizer = qcore.get_quantizer("xnnpack").set_global(scheme)
    converted = qcore.quantize(Computed().eval(), quantizer, [x]).model
    export, exported = torch.export.export, []

    def noted(model: nn.Module, *args: Any, **options: Any) -> Any:
        # The partitioner exports patterns, once in a process.
        exported.extend(
            n for n in getattr(model, "graph", torch.fx.Graph()).nodes if "hypot" in n.name
        )
        return export(model, *args, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    quantizer.lower(converted, (x,), check=False)
    assert len(exported) == 1


def test_a_value_that_is_cast_to_the_type_it_has_is_not_rounded_twice(
    through: Callable[..., Any],
) -> None:
    class Norm(nn.Module):
        """As in Llama: the cast back stands there for models in half precision."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(99, 16)
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens)
            normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * normed.to(x.dtype)

    run = through(Norm(), torch.arange(12).reshape(1, 12))
    assert run.program.report.mended == ()
    assert run.steps.max() <= 1
