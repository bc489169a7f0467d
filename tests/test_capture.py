"""Capture survives what users pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.capture import Sample, capture
from qcore.errors import CaptureError
from qcore.quantizer import Quantizer
from qcore.testing.comparison import sqnr_db

Build = Callable[[], Quantizer]
X = torch.randn(2, 3, 8, 8)
BATCH = ({0: Dim("batch", min=1, max=16)},)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def quantized(source: Any, toy: Build, **options: Any) -> qcore.QuantizedModel:
    return qcore.quantize(source, toy().set_global("8a8w"), [X, X * 2], **options)


@pytest.mark.parametrize(
    "as_what",
    [
        lambda m: m,
        lambda m: torch.export.export(m.eval(), (X,)),
        lambda m: torch.export.export(m.eval(), (X,)).module(),
        lambda m: torch.export.export(m.eval(), (X,), strict=True).module(),
    ],
    ids=["Module", "ExportedProgram", "GraphModule", "strict GraphModule"],
)
def test_every_form_of_a_model_quantizes_alike(toy: Build, as_what: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    float_model = model().eval()
    expected = float_model(X)
    result = quantized(as_what(float_model), toy)
    assert len(result.report.quantized) == 3  # the batch norm is folded
    assert (result.model(X) - expected).abs().max() < 0.1


def test_the_users_model_is_never_changed(toy: Build) -> None:
    float_model = model().eval()
    graph = torch.export.export(float_model, (X,)).module()
    before = {name: value.clone() for name, value in float_model.state_dict().items()}
    code = graph.code
    quantized(graph, toy)
    assert graph.code == code
    assert all(torch.equal(before[n], v) for n, v in float_model.state_dict().items())
    assert all(p.requires_grad for p in float_model.parameters())


def test_the_training_mode_of_every_module_is_restored(toy: Build) -> None:
    float_model = model().train()
    float_model[1].eval()
    quantized(float_model, toy)
    assert [m.training for m in float_model.modules()] == [True, True, False, True]


def test_a_model_in_training_mode_is_captured_for_inference(toy: Build) -> None:
    float_model = model().train()
    result = quantized(float_model, toy)
    assert "batch_norm" not in result.model.code


class Normed(nn.Module):
    """A convolution and a batch norm that has something to do, in a function over both."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.conv, self.norm = function, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        for values in (self.norm.weight, self.norm.running_mean):
            nn.init.normal_(values)
        nn.init.uniform_(self.norm.running_var, 0.1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


NORMED: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], bool]] = {
    "a result that is read before the norm, too": (lambda m, x: m.norm(y := m.conv(x)) + y, False),
    "a layer whose other call has no norm": (lambda m, x: m.norm(m.conv(m.conv(x))), False),
    "a weight that is computed": (
        lambda m, x: m.norm(nn.functional.conv2d(x, m.conv.weight * 2)),
        False,
    ),
    "a layer with the same norm behind each call": (
        lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))),
        True,
    ),
}


@pytest.mark.parametrize("case", NORMED)
def test_a_batch_norm_is_folded_only_where_nothing_else_changes(toy: Build, case: str) -> None:
    function, folds = NORMED[case]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    float_model = Normed(function).eval()
    result = qcore.quantize(float_model, toy().set_global("8a8w"), [x, x / 2])
    assert ("batch_norm" in result.model.code) is not folds
    assert sqnr_db(float_model(x), result.model(x)) > 20


def test_dynamic_batch_sizes_are_kept(toy: Build) -> None:
    result = quantized(model(), toy, dynamic_shapes=BATCH)
    for size in (1, 5, 16):
        assert result.model(X[:1].repeat(size, 1, 1, 1)).shape[0] == size


def test_an_exported_program_brings_its_own_dynamic_sizes(toy: Build) -> None:
    program = torch.export.export(model().eval(), (X,), dynamic_shapes=BATCH)
    assert quantized(program, toy).model(X[:1]).shape[0] == 1


def test_channels_last_inputs_are_captured_as_contiguous(toy: Build) -> None:
    samples = [X.to(memory_format=torch.channels_last)]
    result = qcore.quantize(model(), toy().set_global("8a8w"), samples)
    placeholder = next(n for n in result.model.graph.nodes if n.op == "placeholder")
    assert placeholder.meta["val"].is_contiguous()


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = torch.relu(self.a(x))
            with torch.enable_grad():
                z = self.b(y)
        return self.b(z) + y


def test_no_grad_bodies_are_found(toy: Build) -> None:
    result = quantized(NoGrad(), toy)
    assert [d.operator for d in result.report.in_float] == []
    assert {d.module for d in result.report.quantized} == {"a", "b", ""}
    assert torch.allclose(result.model(X), NoGrad.forward(NoGrad(), X), atol=10)


def test_no_grad_bodies_are_found_in_the_standard_flow(toy: Build) -> None:
    float_model = NoGrad().eval()
    quantizer = toy().set_global("8a8w")
    prepared = prepare_pt2e(torch.export.export(float_model, (X,)).module(), quantizer)
    prepared(X)
    assert (convert_pt2e(prepared)(X) - float_model(X)).abs().max() < 0.2
    assert not quantizer.report.in_float  # type: ignore[union-attr]


def test_keyword_inputs_are_taken(toy: Build) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * scale

    sample = {"x": X, "scale": torch.ones(8)}
    result = qcore.quantize(Keywords(), toy().set_global("8a8w"), [sample])
    assert result.model(**sample).shape == X.shape


def test_a_model_that_does_not_export_says_why_and_what_to_do(toy: Build) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"(?s)cannot capture Branching.*use torch.cond"):
        quantized(Branching(), toy)


def test_a_model_that_is_quantized_already_is_refused(toy: Build) -> None:
    with pytest.raises(CaptureError, match="quantized already.*Pass the float model"):
        quantized(quantized(model(), toy).model, toy)


def test_something_that_is_no_model_is_refused(toy: Build) -> None:
    with pytest.raises(CaptureError, match=r"Cannot capture str: pass a torch.nn.Module"):
        quantized("model.pt2", toy)


def test_weights_that_are_not_numbers_are_refused_by_name(toy: Build) -> None:
    broken = model()
    with torch.no_grad():
        broken.get_parameter("0.weight")[0] = float("nan")
    with pytest.raises(CaptureError, match=r"'0\.weight' holds NaN.*Load the weights"):
        quantized(broken, toy)


@pytest.mark.filterwarnings("error")
def test_capturing_a_recurrent_network_warns_of_nothing() -> None:
    lstm = nn.LSTM(4, 4).eval()
    capture(lstm, Sample((torch.rand(2, 1, 4),), {}))


def test_a_size_of_one_that_should_vary_is_named(toy: Build) -> None:
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    named = r"specialized it to be a constant \(1\).*size there is 2 or more"
    with pytest.raises(CaptureError, match=named):
        qcore.quantize(nn.Linear(8, 8), toy().set_global("8a8w"), [X[:1]], dynamic_shapes=shapes)
