"""Weights that were quantized elsewhere: ``quantize_`` keeps their integers and scales."""

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import AlreadyQuantizedError, UnsupportedSchemeError
from qcore.source import quantized_weight

#: Relative, at most: half a step of bfloat16, which has eight digits.
ROUNDING = 2**-8


def stored(group: int = 32, bits: int = 4, scale_dtype: torch.dtype = torch.bfloat16):
    """Return integers and scales (64, 64 / group)."""
    torch.manual_seed(0)
    half = 1 << bits - 1
    integers = torch.randint(-half, half, (64, 64), dtype=torch.int8)
    return integers, (torch.rand(64, 64 // group) + 0.5).to(scale_dtype)


def network(integers: torch.Tensor, scales: torch.Tensor, bits: int = 4) -> nn.Sequential:
    """Return a norm and two layers behind it, the first of them quantized already."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    weight = quantized_weight(integers, scales, bits)
    model[1].weight = nn.Parameter(weight, requires_grad=False)
    return model.eval()


@pytest.mark.parametrize("group", [32, 64])
def test_integers_and_scales_are_kept_in_groups_of_their_own(group):
    integers, scales = stored(group)
    model = network(integers, scales)
    report = qcore.quantize_(model, "xnnpack", "8da4w")
    assert torch.equal(model[1].weight.qdata, integers)
    assert torch.equal(model[1].weight.scale, scales.float())
    assert model[1].weight.activation_quantization == model[3].weight.activation_quantization
    assert report["1"].scheme == f"8da4w per-group {group}"
    assert (report["1"].algorithm, report["1"].reason) == ("", "quantized already, and kept")
    assert report["3"].algorithm == "round"


def test_a_scale_a_row_is_kept():
    integers, scales = stored(64, bits=8)
    model = network(integers, scales, bits=8)
    report = qcore.quantize_(model, "xnnpack", "8da8w")
    assert torch.equal(model[1].weight.qdata, integers)
    assert report["1"].scheme == "8da8w per-axis"


def test_activations_stay_in_float_where_the_scheme_says_so():
    integers, scales = stored(scale_dtype=torch.float16)
    model = network(integers, scales)
    qcore.quantize_(model, "vulkan", "4w")
    assert torch.equal(model[1].weight.qdata, integers)
    assert torch.equal(model[1].weight.scale, scales.float())
    assert model[1].weight.activation_quantization is None


def test_an_algorithm_that_learns_from_samples_leaves_them_and_the_norm_before():
    integers, scales = stored()
    model = network(integers, scales)
    samples = [torch.randn(8, 64)]
    report = qcore.quantize_(model, "xnnpack", "8da4w", algorithm="gptq", calibration_data=samples)
    assert torch.equal(model[1].weight.qdata, integers)
    assert torch.equal(model[0].weight, torch.ones(64))
    assert report["3"].algorithm == "gptq"


def test_scales_that_the_backend_rounds_are_refused_with_the_loss():
    integers, scales = stored(scale_dtype=torch.float16)
    model = network(integers, scales)
    with pytest.raises(UnsupportedSchemeError, match=r"1 is .*bfloat16.* 0\.\d\d%.*round_scales"):
        qcore.quantize_(model, "xnnpack", "8da4w")
    assert torch.equal(model[1].weight.scale, scales.float())


def test_scales_are_rounded_where_that_is_wanted_and_the_report_says_so():
    integers, scales = stored(scale_dtype=torch.float16)
    model = network(integers, scales)
    report = qcore.quantize_(model, "xnnpack", "8da4w", round_scales=True)
    assert torch.equal(model[1].weight.qdata, integers)
    moved = (model[1].weight.scale / scales.float() - 1).abs().max()
    assert 0 < moved < ROUNDING
    assert f"scales rounded to bfloat16, by up to {moved:.2%}" in report["1"].reason


@pytest.mark.parametrize(
    ("group", "bits", "scheme", "error", "message"),
    [
        (16, 4, "8da4w", UnsupportedSchemeError, "per-group 16, .*takes multiples of 32"),
        (32, 8, "8da8w", UnsupportedSchemeError, "has no 8da8w per-group 32"),
        (64, 8, "8da4w", AlreadyQuantizedError, "8w per-axis, .*asks for something else"),
        (32, 4, "8da4w per-group 64", AlreadyQuantizedError, "asks for something else"),
    ],
)
def test_what_the_backend_or_the_scheme_does_not_take_is_refused(
    group, bits, scheme, error, message
):
    with pytest.raises(error, match=message):
        qcore.quantize_(network(*stored(group, bits), bits), "xnnpack", scheme)


def test_integers_of_more_bits_and_scales_of_no_size_are_refused():
    integers, scales = stored(bits=8)
    with pytest.raises(UnsupportedSchemeError, match="4 bits .* are -8 to 7"):
        quantized_weight(integers, scales, 4)
    with pytest.raises(UnsupportedSchemeError, match="a scale is 0"):
        quantized_weight(integers, scales * 0, 8)
