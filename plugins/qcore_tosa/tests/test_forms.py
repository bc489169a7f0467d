"""Operators that the table lacks: written as others, with the same outputs, and quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import qcore
from qcore.errors import CaptureError, UnsupportedSchemeError
from qcore_tosa import TosaQuantizer, get_symmetric_quantization_config

aten = torch.ops.aten
_RANDOM = torch.Generator().manual_seed(0)
PICTURE = torch.rand(1, 4, 8, 8, generator=_RANDOM) * 2 - 1
TABLE = torch.rand(4, 8, generator=_RANDOM) * 2 - 1


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def quantizer(spec: str = "TOSA-1.0+INT") -> TosaQuantizer:
    return TosaQuantizer(spec).set_global(get_symmetric_quantization_config())


def norm(kind: type[nn.Module]) -> nn.Module:
    """A batch norm with statistics and factors that differ by channel."""
    generator = torch.Generator().manual_seed(1)
    made: Any = kind(4 if kind is not nn.BatchNorm1d else 8)
    made.running_mean.uniform_(-1, 1, generator=generator)
    made.running_var.uniform_(0.01, 4, generator=generator)
    made.weight.data.uniform_(-2, 2, generator=generator)
    made.bias.data.uniform_(-1, 1, generator=generator)
    return made.eval()


OF_PICTURES: dict[str, Callable[..., Any]] = {
    "swapaxes": lambda x: x.swapaxes(1, 2) + 1,
    "mT": lambda x: x.mT + 1,
    "narrow": lambda x: x.narrow(1, 0, 2) * 2,
    "tensor_split": lambda x: x.tensor_split(2, 1)[1] * 2,
    "hstack": lambda x: torch.hstack([x, x * 2]),
    "expand_as": lambda x: x[:, :1].expand_as(x) * 2,
    "reshape_as": lambda x: (x * 2).transpose(1, 2).reshape_as(x),
    "normalize": lambda x: functional.normalize(x, dim=1),
    "relu6": lambda x: functional.relu6(x * 9),
    "dropout2d": lambda x: functional.dropout2d(x, training=False) * 2,
    "detach": lambda x: (x * 2).detach() * 2,
    "sigmoid_": lambda x: (x * 2).sigmoid_(),
    "prelu": nn.PReLU(4),
    "softplus": nn.Softplus(),
    "softplus with a factor": nn.Softplus(2.0),
    "mish": nn.Mish(),
    "log_sigmoid": nn.LogSigmoid(),
    "instance_norm": nn.InstanceNorm2d(4, affine=True),
    "rms_norm": nn.RMSNorm(8),
    "channel_shuffle": nn.ChannelShuffle(2),
    "max_pool2d with positions": lambda x: functional.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d(2),
    "adaptive_max_pool2d to one": nn.AdaptiveMaxPool2d(1),
    "adaptive_max_pool2d with windows of two sizes": nn.AdaptiveMaxPool2d(3),
    "cumsum": lambda x: x.cumsum(1) * 2,
    "neg": lambda x: -x.relu(),
    "transposed convolution of two groups": nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2),
    "transposed convolution by channel": nn.ConvTranspose2d(4, 4, 2, groups=4, bias=False),
    "index": lambda x: x[:, [0, 2]] * 2,
    "gather": lambda x: (x * 2).gather(-1, torch.arange(12).reshape(1, 2, 3, 2) % 8),
    "gather in the middle": lambda x: x.gather(1, torch.arange(9).reshape(1, 3, 3, 1) % 4) * 2,
    "roll": lambda x: x.roll((1, -2), (2, 3)) * 2,
    "rot90": lambda x: x.rot90(3, (2, 3)) * 2,
    "batch norm": norm(nn.BatchNorm2d),
    "resizing to a half": lambda x: functional.interpolate(x, scale_factor=0.5) * 2,
    "resizing by one and a half": lambda x: functional.interpolate(x, scale_factor=1.5) * 2,
    "resizing to odd sizes": lambda x: functional.interpolate(x, size=(5, 3)) * 2,
    "same padding of an even kernel": nn.Conv2d(4, 4, 4, padding="same"),
    "same padding, dilated": nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(1, 3)),
    "mean of squares": lambda x: x.square().mean((2, 3)),
}

OF_TABLES: dict[str, Callable[..., Any]] = {
    "T": lambda x: x.T + 1,
    "outer": lambda x: torch.outer(x[0], x[1]),
    "inner": lambda x: torch.inner(x, x),
    "tensordot": lambda x: torch.tensordot(x, x, ([1], [1])),
    "dot": lambda x: torch.dot(x[0], x[1]),
    "mv": lambda x: torch.mv(x, x[0]),
    "std": lambda x: x.std(1),
    "std over everything": lambda x: x.std(),
    "diff": lambda x: x.diff(dim=1) * 2,
    "clip": lambda x: torch.clip(x * 2, -0.2, 0.3),
    "clamp_min": lambda x: (x * 2).clamp_min(0.1),
    "logsumexp": lambda x: x.logsumexp(1),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x + 2),
    "exp2": lambda x: x.exp2(),
    "log2": lambda x: (x + 2).log2(),
    "erfc": lambda x: x.erfc(),
    "largest values": lambda x: x.max(1).values * 2,
    "position of the largest": lambda x: x.max(1).indices,
    "largest with position": lambda x: tuple(x.max(1)),
    "smallest with position": lambda x: tuple(x.min(1)),
    "largest of all": lambda x: x.max() * 2,
    "argmin": lambda x: x.argmin(1),
    "argmax of all": lambda x: (x * 2).argmax(),
    "batch norm of a table": norm(nn.BatchNorm1d),
    "addmm of a weight": lambda x: torch.addmm(torch.ones(8) / 3, x, torch.eye(8) * 2),
    "addmm of a product": lambda x: torch.addmm(x[0], x, x.T @ x, beta=2, alpha=0.5),
    "cumprod": lambda x: x.cumprod(1),
    "threshold": lambda x: functional.threshold(x, 0.1, 0.5),
    "a value or itself": lambda x: torch.where(x[:1] > 0, x, x) * 2,
    "unfold": lambda x: x.unfold(1, 3, 2) * 2,
    "ones_like": lambda x: x * 2 + torch.ones_like(x),
    "hypot": lambda x: torch.hypot(x, x * 2),
    "rrelu": lambda x: functional.rrelu(x),
    "conv_transpose1d": nn.ConvTranspose1d(4, 2, 4, 2, 1),
    "conv_transpose1d of groups": nn.ConvTranspose1d(4, 2, 4, 2, 1, groups=2),
}

CASES = [
    *(pytest.param(function, PICTURE, id=name) for name, function in OF_PICTURES.items()),
    *(pytest.param(function, TABLE, id=name) for name, function in OF_TABLES.items()),
]


def module_of(function: Callable[..., Any]) -> nn.Module:
    return (function if isinstance(function, nn.Module) else Fn(function)).eval()


@pytest.mark.parametrize(("function", "x"), CASES)
def test_the_other_form_computes_the_same(function: Callable[..., Any], x: torch.Tensor) -> None:
    model = module_of(function)
    graph = torch.export.export(model, (x,)).module(check_guards=False)
    transformed = quantizer("TOSA-1.0+FP+INT").transform_for_annotation(graph)
    torch.testing.assert_close(transformed(x), model(x), atol=1e-5, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize(("function", "x"), CASES)
def test_the_other_form_is_quantized(function: Callable[..., Any], x: torch.Tensor) -> None:
    q = quantizer()
    graph = torch.export.export(module_of(function), (x,)).module(check_guards=False)
    q.annotate(q.transform_for_annotation(graph))
    assert q.report is not None
    left = [d for d in q.report.in_float if "integers" not in d.reason]
    assert not left
    assert q.report.quantized


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "batch norm",
        "softplus",
        "prelu",
        "resizing by one and a half",
        "same padding of an even kernel",
        "adaptive_max_pool2d",
        "adaptive_max_pool2d with windows of two sizes",
        "cumsum",
        "neg",
        "transposed convolution of two groups",
        "index",
        "gather",
        "gather in the middle",
    ],
)
def test_the_other_form_lowers_and_runs(name: str) -> None:
    torch.manual_seed(0)
    model = module_of(OF_PICTURES[name])
    result = qcore.quantize(model, quantizer(), [PICTURE], progress=False)
    program = quantizer().lower(result.model, PICTURE)
    assert not program.report.undelegated
    expected = result.model(PICTURE)
    step = float(expected.abs().max()) / 100
    torch.testing.assert_close(program.run(PICTURE), expected, rtol=0, atol=step)


def test_what_is_gathered_in_float_has_the_partitioners_reason_in_the_report() -> None:
    model = module_of(lambda x: (x * 2).gather(0, torch.zeros(1, 8).long()) * 2)
    q = quantizer("TOSA-1.0+FP+INT").set_operator_type(aten.gather.default, None)
    program = q.lower(qcore.quantize(model, q, [TABLE], progress=False).model, TABLE)
    (reason,) = [n.reason for n in program.report.undelegated if "gather" in n.operator]
    assert "unsupported dim/rank; got dim=0" in reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["largest with position", "argmin", "argmax of all"])
def test_positions_come_out_of_the_delegate_as_int32(name: str) -> None:
    model = module_of(OF_TABLES[name])
    result = qcore.quantize(model, quantizer(), [TABLE], progress=False)
    program = quantizer().lower(result.model, TABLE)
    assert not program.report.undelegated
    torch.testing.assert_close(program.run(TABLE), result.model(TABLE), rtol=0, atol=0)


def test_what_stays_in_float_keeps_its_form() -> None:
    q = quantizer("TOSA-1.0+FP+INT").set_operator_type(aten.mish.default, None)
    model = nn.Sequential(nn.Linear(8, 8), nn.Mish())
    report = qcore.quantize(model, q, [TABLE], progress=False).report
    assert report["mish"].operator == "aten.mish.default"


def test_a_batch_norm_is_as_accurate_as_a_layer_and_takes_what_follows() -> None:
    model = nn.Sequential(norm(nn.BatchNorm2d), nn.ReLU())
    result = qcore.quantize(model, quantizer(), [PICTURE], progress=False)
    assert {d.pattern for d in result.report.quantized} == {"conv2d + relu"}
    expected = model(PICTURE)
    noise = (result.model(PICTURE) - expected).pow(2).mean() / expected.pow(2).mean()
    assert noise < 10**-4


def test_what_moves_a_result_of_an_operator_that_stays_in_float_stays_in_float() -> None:
    def largest(x: torch.Tensor) -> Any:
        pooled, positions = functional.adaptive_max_pool2d(x, 3, return_indices=True)
        return functional.pixel_unshuffle(pooled, 3), positions, x * 2

    q = quantizer("TOSA-1.0+FP+INT")
    report = qcore.quantize(Fn(largest), q, [PICTURE], progress=False).report
    assert [d.node for d in report.quantized] == ["mul"]
    assert "its input is in float" in report["pixel_unshuffle"].reason


class Counter(nn.Module):
    """A model that keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.total = nn.Buffer(torch.zeros(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.total.add_(x) * 2


def test_a_model_that_keeps_a_state_is_refused_with_what_to_do() -> None:
    with pytest.raises(CaptureError, match=r"buffer 'total'.*as an input.*return the new one"):
        qcore.quantize(Counter(), quantizer(), [TABLE])


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.ConvTranspose2d(4, 4, 3, groups=2), PICTURE),
        (nn.ConvTranspose1d(4, 2, 3), TABLE[None, :4]),
    ],
)
def test_weights_that_would_not_be_trained_are_refused_by_name(
    layer: nn.Module, x: torch.Tensor
) -> None:
    q = quantizer().set_global(get_symmetric_quantization_config(is_qat=True))
    graph = torch.export.export(layer, (x,)).module(check_guards=False)
    with pytest.warns(qcore.errors.QcoreWarning, match="1 x aten.conv_transpose"):
        q.annotate(q.transform_for_annotation(graph))


def test_dilated_transposed_convolutions_are_refused_with_what_to_do() -> None:
    model = nn.ConvTranspose2d(4, 4, 3, dilation=2)
    with pytest.raises(qcore.errors.SelectionError, match=r"(?s)dilation=\[2, 2\].*zeros between"):
        qcore.quantize(model, quantizer(), [PICTURE])


def test_a_target_without_integers_has_no_scheme() -> None:
    with pytest.raises(UnsupportedSchemeError, match="computes in float alone.*FP\\+INT"):
        TosaQuantizer("TOSA-1.0+FP").set_global("8a8w")


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.interpolate(x, size=(5, 3)),
        lambda x: tuple(x.max(1)),
        lambda x: (functional.elu(x, 0.2), functional.elu(x, 1.0), nn.functional.selu(x)),
    ],
    ids=["nearest", "positions", "elu"],
)
def test_what_executorch_would_compute_wrongly_is_right_in_float_too(
    function: Callable[..., Any],
) -> None:
    model = Fn(function)
    lowered = quantizer("TOSA-1.0+FP+INT").lower(
        torch.export.export(model, (PICTURE,)).module(check_guards=False), (PICTURE,)
    )
    torch.testing.assert_close(
        lowered.run(PICTURE), model(PICTURE), atol=1e-4, rtol=1e-3, check_dtype=False
    )


@pytest.mark.slow
def test_relatives_of_elu_on_one_value_keep_their_parameters() -> None:
    model = Fn(lambda x: (functional.elu(x, 0.2), functional.elu(x, 1.0), functional.selu(x)))
    result = qcore.quantize(model, quantizer(), [TABLE], progress=False)
    outputs = quantizer().lower(result.model, TABLE).run(TABLE)
    for output, expected in zip(outputs, result.model(TABLE), strict=True):
        torch.testing.assert_close(output, expected, rtol=0, atol=0.03)
