"""Each row of the support table, executed on the real runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore
from qcore.errors import LoweringError
from qcore.testing import Fn
from qcore_xnnpack.support import TABLE

torch.manual_seed(0)  # The layers of the cases are the same in every run.

IMAGE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SIGNAL = IMAGE[0]
OTHER = IMAGE.flip(3) * 2


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 8, 3, padding=1, **options)


def conv_same(size: int) -> nn.Conv2d:
    return nn.Conv2d(4, 8, size, padding="same")


def after_conv(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, Any]:
    return Fn(lambda m, x: function(m.conv(x)), conv=conv()), (IMAGE,)


CASES: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "conv1d": (nn.Conv1d(8, 8, 3, padding=1), (SIGNAL.permute(0, 2, 1),)),
    "conv2d": (conv(), (IMAGE,)),
    "conv2d, depthwise": (nn.Conv2d(4, 4, 3, groups=4), (IMAGE,)),
    "conv2d, grouped": (nn.Conv2d(4, 8, 3, groups=2), (IMAGE,)),
    "conv2d, no bias": (conv(bias=False), (IMAGE,)),
    "conv2d + relu": (nn.Sequential(conv(), nn.ReLU()), (IMAGE,)),
    "conv2d + relu6": (nn.Sequential(conv(), nn.ReLU6()), (IMAGE,)),
    "conv2d + clamp": (Fn(lambda m, x: m.c(x).clamp(-1, 1), c=conv()), (IMAGE,)),
    "conv2d + bn + relu": (nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()), (IMAGE,)),
    "conv_transpose1d": (nn.ConvTranspose1d(8, 8, 3), (SIGNAL.permute(0, 2, 1),)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 8, 3, stride=2), (IMAGE,)),
    "conv1d, same padding": (nn.Conv1d(8, 8, 3, padding="same"), (SIGNAL,)),
    "conv2d, same padding": (conv_same(3), (IMAGE,)),
    "conv2d, same padding of an even kernel": (conv_same(4), (IMAGE,)),
    "conv2d, a batch norm by itself": (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), (IMAGE,)),
    "linear": (nn.Linear(8, 4), (IMAGE,)),
    "linear + relu6": (nn.Sequential(nn.Linear(8, 4), nn.ReLU6()), (IMAGE,)),
    "add": (Fn(lambda m, x, y: x + y), (IMAGE, OTHER)),
    "add, scalar": (Fn(lambda m, x: x + 1.5), (IMAGE,)),
    "add + relu": (Fn(lambda m, x, y: torch.relu(x + y)), (IMAGE, OTHER)),
    "elu": after_conv(lambda y: F.elu(y, 0.7)),
    "elu, selu": after_conv(F.selu),
    "elu, celu": after_conv(lambda y: F.celu(y, 2.0)),
    "sub": (Fn(lambda m, x, y: x - y), (IMAGE, OTHER)),
    "sub from a scalar": (Fn(lambda m, x: 1 - x), (IMAGE,)),
    "mul": (Fn(lambda m, x, y: x * y), (IMAGE, OTHER)),
    "mul, square": (Fn(lambda m, x: x.square()), (IMAGE,)),
    "mul + relu": (Fn(lambda m, x, y: torch.relu(x * y)), (IMAGE, OTHER)),
    "cat": (Fn(lambda m, x, y: torch.cat([x, y, x], 1)), (IMAGE, OTHER)),
    "adaptive_avg_pool2d": (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1)), (IMAGE,)),
    "relu": after_conv(lambda y: torch.relu(y) + y),
    "hardtanh": after_conv(lambda y: F.relu6(y) + y),
    "max_pool2d": after_conv(lambda y: F.max_pool2d(y, 3, 2, 1)),
    "max_pool2d, default stride": after_conv(lambda y: F.max_pool2d(y, 2)),
    "max_pool2d, adaptive": after_conv(lambda y: F.adaptive_max_pool2d(y, 2)),
    "max_pool1d, default stride": after_conv(lambda y: F.max_pool1d(y.flatten(2), 2)),
    "max_pool1d": (nn.Sequential(nn.Conv1d(8, 8, 3), nn.MaxPool1d(3, 2, 1)), (SIGNAL.mT,)),
    "clamp": after_conv(lambda y: y.clamp(max=0.3) + y),
    "mean": after_conv(lambda y: y.mean((2, 3))),
    "permute": after_conv(lambda y: y.permute(0, 2, 3, 1)),
    "permute, t": (Fn(lambda m, x: m.l(x).t(), l=nn.Linear(8, 4)), (SIGNAL[0],)),
    "squeeze": after_conv(lambda y: y.squeeze(0)),
    "unsqueeze": after_conv(lambda y: y.unsqueeze(0)),
    "view": after_conv(lambda y: y.view(8, 64)),
    "flatten": after_conv(lambda y: y.flatten(1)),
    "slice": after_conv(lambda y: y[:, 2:5]),
    "slice, select": after_conv(lambda y: y[:, -1]),
    "slice, narrow": after_conv(lambda y: y.narrow(1, 2, 3)),
    "slice, tensor_split": after_conv(lambda y: torch.add(*y.tensor_split(2, 1))),
    "view, unflatten": after_conv(lambda y: y.unflatten(1, (2, 4))),
    "view, view_as": after_conv(lambda y: y.view_as(y.flatten(2))),
    "view, ravel": after_conv(lambda y: y.ravel()),
    "permute, mT": after_conv(lambda y: y.mT),
    "permute, adjoint": after_conv(lambda y: y.adjoint()),
    "permute, T": after_conv(lambda y: y.flatten(1).T),
    "permute, swapaxes": after_conv(lambda y: y.swapaxes(1, -1)),
    "permute, swapdims": after_conv(lambda y: y.swapdims(1, 2)),
    "permute, movedim": after_conv(lambda y: y.movedim(1, -1)),
    "permute, moveaxis": after_conv(lambda y: y.moveaxis((1, 2), (-1, 1))),
    "permute, pixel_shuffle": after_conv(lambda y: F.pixel_shuffle(y, 2)),
    "cat, stack": after_conv(lambda y: torch.stack([y, y.relu()], -1)),
    "cat, concat": after_conv(lambda y: torch.concat([y, y.relu()], 1)),
    "cat, hstack": after_conv(lambda y: torch.hstack([y, y.relu()])),
    "cat, vstack": after_conv(lambda y: torch.vstack([y, y.relu()])),
    "mul, a negation": after_conv(lambda y: -y),
    "slice, roll": after_conv(lambda y: y.roll((1, -2), (2, 3))),
    "chunk": after_conv(lambda y: torch.add(*y.chunk(2, 1))),
    "split": after_conv(lambda y: torch.add(*y.split([4, 4], 1))),
    "copy": after_conv(lambda y: y.permute(0, 2, 3, 1).contiguous()),
    "pad": after_conv(lambda y: F.pad(y, (1, 1, 1, 1))),
    "pad, reflect": after_conv(lambda y: F.pad(y, (1, 2, 1, 1), mode="reflect")),
    "pad, replicate": after_conv(lambda y: F.pad(y, (1, 1, 0, 2), mode="replicate")),
    "pad, circular": after_conv(lambda y: F.pad(y, (3, 1, 1, 2), mode="circular")),
    "conv2d, padding_mode": (
        nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")),
        (IMAGE,),
    ),
    "dropout": (nn.Sequential(conv(), nn.Dropout(), nn.Conv2d(8, 4, 1)), (IMAGE,)),
    "conv, pad, conv": (
        Fn(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1))), a=conv(), b=nn.Conv2d(8, 8, 3)),
        (IMAGE,),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_quantized_and_runs_in_one_delegate(through: Callable[..., Any], case: str) -> None:
    model, inputs = CASES[case]
    run = through(model, *inputs)
    assert [str(d) for d in run.result.report.in_float] == []
    assert (run.program.report.delegates, run.program.report.undelegated) == (1, ())
    assert run.program.report.stray == ()
    # XNNPACK rounds biases to int32 and breaks ties its own way: one step per operator in series.
    assert run.steps.max() <= 2.01
    # A tie of one value reaches the 72 outputs of a convolution behind it: up to 4 %.
    assert (run.steps > 0.5).sum() <= max(2, 0.05 * run.steps.numel())
    signal = run.float_output.pow(2).mean()
    noise = (run.program_output - run.float_output).pow(2).mean()
    assert noise < max(2e-3 * signal, run.last_scale**2)


def test_every_row_of_the_table_has_a_case() -> None:
    rows = {pattern.name for pattern in TABLE}
    tried = {case.split(",")[0].split(" ")[0] for case in CASES}
    families = {"conv": "conv2d", "conv_transpose": "conv_transpose2d"}
    assert {families.get(row, row) for row in rows} <= tried


DYNAMIC = {
    "linear": (nn.Linear(8, 4), (IMAGE,)),
    "conv2d": (conv(), (IMAGE,)),
    "conv2d, grouped": (nn.Conv2d(4, 8, 3, groups=2), (IMAGE,)),
    "conv2d, same padding": (conv_same(3), (IMAGE,)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 8, 3), (IMAGE,)),
}


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("case", DYNAMIC)
def test_dynamic_layers_are_delegated(
    through: Callable[..., Any], case: str, granularity: str
) -> None:
    model, inputs = DYNAMIC[case]
    run = through(model, *inputs, scheme=f"8da8w {granularity}")
    assert (run.program.report.delegates, run.program.report.undelegated) == (1, ())
    signal = run.float_output.pow(2).mean()
    assert (run.program_output - run.float_output).pow(2).mean() < 1e-3 * signal


REFUSED: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...], str, str]] = {
    "conv3d": (nn.Conv3d(1, 1, 1), (IMAGE[None],), "8a8w", "xnnpack has no quantized aten.conv3d"),
    "grouped transposed": (
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        (IMAGE,),
        "8a8w",
        "transposed convolution with groups=2",
    ),
    "dynamic conv1d": (
        nn.Conv1d(8, 8, 3),
        (SIGNAL.permute(0, 2, 1),),
        "8da8w",
        "only 2d convolutions with dynamic activations",
    ),
    "dynamic depthwise": (
        nn.Conv2d(4, 4, 3, groups=4),
        (IMAGE,),
        "8da8w",
        "no depthwise convolution with dynamic",
    ),
    "alpha": (
        Fn(lambda m, x, y: torch.add(x, y, alpha=2)),
        (IMAGE, OTHER),
        "8a8w",
        "alpha=2 is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_xnnpack_cannot_run_in_int8_says_why(through: Callable[..., Any], case: str) -> None:
    from qcore.errors import SelectionError

    model, inputs, scheme, says = REFUSED[case]
    with pytest.raises(SelectionError, match=says):
        through(model, *inputs, scheme=scheme)


MIXED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "slice with a step": (lambda y: y[:, ::2], "xnnpack slices with step 1 only, not 2"),
    "wide reflecting pad": (lambda y: F.pad(y, (3, 3, 3, 3), mode="reflect"), "constants only"),
    "hypot": (lambda y: torch.hypot(y, y + 1), "no quantized aten.hypot"),
    "cumprod": (lambda y: torch.cumprod(y, -1), "no quantized aten.cumprod"),
    "uneven adaptive_max_pool2d": (
        lambda y: F.adaptive_max_pool2d(y, (3, 5)),
        "no quantized aten.adaptive_max_pool2d",
    ),
    "rrelu": (F.rrelu, "no quantized aten.rrelu"),
    "sigmoid": (torch.sigmoid, "no quantized aten.sigmoid.default"),
    "softmax of an image": (lambda y: y.softmax(-1), "no quantized aten.softmax"),
    "mean of everything": (lambda y: y.mean().reshape(1), "no quantized aten.mean.default"),
    "mean of rows": (lambda y: y.mean(-1), "averages over height and width of 4d tensors only"),
}


@pytest.mark.parametrize("case", MIXED)
def test_what_stays_in_float_still_runs_right(through: Callable[..., Any], case: str) -> None:
    function, reason = MIXED[case]
    run = through(*(after_conv(function)[0], IMAGE))
    assert any(reason in d.reason for d in run.result.report.in_float) or not reason
    assert torch.allclose(run.program_output, run.converted_output, atol=0.05)
    assert (run.program_output - run.float_output).abs().max() < 0.1


def test_what_is_not_delegated_is_named(through: Callable[..., Any]) -> None:
    run = through(*(after_conv(lambda y: torch.cumsum(y, 1))[0], IMAGE))
    assert [record.operator for record in run.program.report.undelegated] == ["aten.cumsum.default"]
    assert "cumsum" in str(run.program.report)


class Modulated(nn.Module):
    """Scales the weight of a convolution by another parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * self.gain)


def test_a_weight_that_is_computed_from_parameters_is_delegated(
    through: Callable[..., Any],
) -> None:
    run = through(Modulated(), IMAGE)
    assert (run.program.report.delegates, run.program.report.undelegated) == (1, ())
    assert run.program.report.mended == ()
    assert run.steps.max() <= 1.01


def test_a_model_in_channels_last_is_lowered_like_any_other(through: Callable[..., Any]) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(
        memory_format=torch.channels_last
    )
    run = through(model, IMAGE.contiguous(memory_format=torch.channels_last))
    assert (run.program.report.delegates, run.program.report.mended) == (1, ())
    assert run.steps.max() <= 1.01


def test_a_value_that_is_read_in_two_memory_formats_is_right_in_both(through):
    # The delegate returns the image in rows, and reads it with its channels last.
    run = through(after_conv(F.logsigmoid)[0], IMAGE)
    assert not run.program.report.mended


def test_scalars_between_operators_that_xnnpack_tabulates_are_constants_of_the_delegate(through):
    linear = nn.Linear(8, 4)
    run = through(Fn(lambda m, x: 1 / (m.linear(x).abs() + 1), linear=linear), SIGNAL)
    assert not run.program.report.mended


class Reshaped(nn.Module):
    """Returns a value that it reshapes once more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.linear(x).unsqueeze(1)
        return y, y[:, -1].square()


@pytest.mark.parametrize(
    ("operator", "function"),
    [("special_i0", torch.special.i0), ("complex", lambda y: torch.complex(y, y).abs())],
)
def test_what_no_kernel_computes_is_named_with_what_to_do(operator: str, function: Any) -> None:
    model, samples = Fn(lambda m, x: function(m.linear(x)), linear=nn.Linear(8, 4)), [(IMAGE,)]
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    converted = qcore.quantize(model, quantizer, [*samples, (OTHER,)]).model
    with pytest.raises(LoweringError, match=rf"{operator}.* cannot be executed.*Replace it in the"):
        quantizer.lower(converted, samples[0])


def test_a_constant_that_is_written_into_is_the_same_in_every_run() -> None:
    def biased(m: Any, x: torch.Tensor) -> torch.Tensor:
        bias = torch.ones(4) * 2
        bias += torch.arange(4.0)
        return m.linear(x) + bias

    model = Fn(biased, linear=nn.Linear(8, 4)).eval()
    program = qcore.get_quantizer("xnnpack").lower(torch.export.export(model, (IMAGE,)), (IMAGE,))
    assert program.report.mended == ()
    for executed in program.run_many([(IMAGE,), (IMAGE,)]):
        torch.testing.assert_close(executed, model(IMAGE))


@pytest.mark.parametrize(
    "clamps",
    [
        lambda y: F.hardtanh(torch.relu(y)),
        lambda y: torch.relu(F.hardtanh(y)),
        lambda y: F.hardtanh(F.relu6(F.hardtanh(y, -2.0, 0.5)), 0.1, 3.0),
    ],
    ids=["hardtanh of relu", "relu of hardtanh", "three"],
)
def test_what_is_clamped_twice_is_right_behind_a_layer_in_float(clamps: Any) -> None:
    model = Fn(lambda m, x: (clamps(m.conv(x)), m.linear(x)), conv=conv(), linear=nn.Linear(8, 4))
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w").set_module_name("conv", None)
    converted = qcore.quantize(model, quantizer, [(IMAGE,), (OTHER,)]).model
    program = quantizer.lower(converted, (IMAGE,))
    assert program.report.mended == ()
    torch.testing.assert_close(program.run(IMAGE)[0], converted(IMAGE)[0])


def test_a_reshaped_value_that_is_reshaped_again_is_right_where_it_is_returned() -> None:
    sample = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    result = qcore.quantize(Reshaped().eval(), quantizer, [sample, (sample[0] / 2,)])
    report = quantizer.lower(result.model, sample).report
    assert (report.mended, report.delegates) == ((), 1)


def test_a_view_of_what_was_reshaped_from_a_transposed_value_is_lowered(through) -> None:
    run = through(
        Fn(lambda m, x: m.l(x.sin().mT.reshape(64, 4).view(-1, 8)), l=nn.Linear(8, 4)), IMAGE
    )
    assert not run.program.report.mended
