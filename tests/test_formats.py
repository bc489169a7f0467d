"""A number format is one object: schemes, names and the flow take it as it is."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn

import qcore
from qcore import registry
from qcore.annotation import (
    CLAMPS,
    GemmRule,
    OperatorPattern,
    SupportTable,
    annotate_graph,
)
from qcore.calibration import HistogramObserver
from qcore.compat.torchao import convert_pt2e, prepare_qat_pt2e
from qcore.errors import UnsupportedSchemeError
from qcore.formats import (
    INT8,
    INT8_WEIGHTS,
    INT16,
    UINT8,
    FixedPoint,
    NumberFormat,
    power_of_two,
)
from qcore.schemes import QuantizationScheme

aten = torch.ops.aten
INT4 = NumberFormat("4", torch.int8, -8, 7)
SHIFT = NumberFormat("po8", torch.int8, -128, 127, scales=power_of_two)
SHIFT_WEIGHTS = NumberFormat("po8", torch.int8, -127, 127, symmetric=True, scales=power_of_two)

Quantize = Callable[..., qcore.QuantizedModel]


@pytest.fixture
def quantize(toy_backend: type) -> Iterator[Quantize]:
    """Quantizes a linear layer by a scheme's name, on a toy backend that declares the scheme."""

    def run(scheme: QuantizationScheme, name: str) -> qcore.QuantizedModel:
        schemes = qcore.hookimpl(lambda self: [scheme])
        qcore.register_backend("new", type("New", (toy_backend,), {"supported_schemes": schemes}))
        torch.manual_seed(0)
        samples = [torch.rand(4, 8) for _ in range(4)]
        return qcore.quantize(
            nn.Sequential(nn.Linear(8, 4)), qcore.get_quantizer("new").set_global(name), samples
        )

    yield run
    registry.unregister_backend("new")


def quantizations(model: Any) -> list[tuple[Any, ...]]:
    """Return scale, zero point, lowest and highest level of every activation."""
    calls = [n for n in model.graph.nodes if ".quantize_per_tensor" in str(n.target)]
    return [tuple(node.args[1:5]) for node in calls]


def test_four_bit_activations_are_one_object(quantize: Quantize) -> None:
    result = quantize(QuantizationScheme(8, INT4), "4a8w")
    assert result.report["linear"].scheme == "4a8w static per-channel"
    assert [call[2:] for call in quantizations(result.model)] == [(-8, 7), (-8, 7)]
    scale, zero_point = quantizations(result.model)[0][:2]
    # Ranges are chosen for 16 levels, not for the 256 of the type that stores them.
    assert scale == pytest.approx(1 / 15, rel=0.1)
    assert zero_point == -8


def test_scales_that_are_powers_of_two_are_one_object(quantize: Quantize) -> None:
    result = quantize(QuantizationScheme(SHIFT_WEIGHTS, SHIFT), "po8apo8w per-channel")
    assert result.report["linear"].scheme == "po8apo8w static per-channel"
    scales = [torch.tensor(call[0]) for call in quantizations(result.model)]
    weights = [value for name, value in result.model.named_buffers() if "scale" in name]
    assert weights
    for value in torch.cat([*(s.reshape(1) for s in scales), *(w.flatten() for w in weights)]):
        assert value.log2() == value.log2().round()


def test_a_rule_for_scales_holds_in_training_too(toy_backend: type) -> None:
    scheme = QuantizationScheme(SHIFT_WEIGHTS, SHIFT, is_qat=True)
    schemes = qcore.hookimpl(lambda self: [scheme])
    backend = type("New", (toy_backend,), {"supported_schemes": schemes})()
    quantizer = qcore.Quantizer(backend, "new").set_global(scheme.to_config())
    graph = torch.export.export(nn.Sequential(nn.Linear(8, 4)), (torch.rand(4, 8),)).module()
    prepared = prepare_qat_pt2e(graph, quantizer)
    prepared(torch.rand(4, 8))
    for scale, *_ in quantizations(convert_pt2e(prepared)):
        assert torch.tensor(scale).log2() == torch.tensor(scale).log2().round()


def test_the_smallest_value_stays_where_it_was_when_scales_widen() -> None:
    spec = SHIFT.activation_qspec(torch_min_max(), is_dynamic=False)
    observer = spec.observer_or_fake_quant_ctr.with_args(
        dtype=torch.int8, qscheme=spec.qscheme, quant_min=-128, quant_max=127
    )()
    observer(torch.tensor([-0.3, 0.9]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == 2**-7
    assert (-128 - zero_point.item()) * scale.item() == pytest.approx(-0.3, abs=scale.item())


def torch_min_max() -> Any:
    from qcore.compat.torchao import MinMaxObserver

    return MinMaxObserver


def test_dynamic_ranges_and_a_rule_for_scales_exclude_each_other() -> None:
    with pytest.raises(UnsupportedSchemeError, match="'po8' allows some scales only"):
        QuantizationScheme(8, SHIFT, is_dynamic=True).to_config()


@pytest.mark.parametrize("known", [INT8, INT16, UINT8, INT8_WEIGHTS, INT4, SHIFT, SHIFT_WEIGHTS])
def test_formats_are_hashable_pickle_and_are_read_off_their_qspecs(known: NumberFormat) -> None:
    assert pickle.loads(pickle.dumps(known)) == known
    assert {known: 1}[known] == 1
    spec = known.activation_qspec(torch_min_max(), is_dynamic=False)
    assert NumberFormat.of(spec) == known
    assert NumberFormat.of(pickle.loads(pickle.dumps(spec))) == known


@pytest.mark.parametrize(
    ("stored", "value", "holds"),
    [
        (INT8, INT4, True),
        (INT4, INT8, False),
        (INT8, UINT8, False),
        (INT16, INT8, False),
        (INT8, INT8_WEIGHTS, True),
        (INT8_WEIGHTS, INT8, False),
        (INT8, SHIFT, True),
        (SHIFT, INT8, False),
    ],
)
def test_a_format_holds_what_its_kernels_compute_with(
    stored: NumberFormat, value: NumberFormat, holds: bool
) -> None:
    assert stored.holds(value) is holds


def test_float8_is_refused_for_torchao_would_round_it_to_whole_levels(quantize: Quantize) -> None:
    fp8 = NumberFormat("fp8", torch.float8_e4m3fn, -448, 448, symmetric=True)
    operators = torch.ops.quantized_decomposed
    levels = operators.quantize_per_tensor(
        torch.tensor([0.3, 1.25]), 1.0, 0, -448, 448, torch.float8_e4m3fn
    )
    assert levels.float().tolist() == [0, 1]
    for scheme in (QuantizationScheme(8, fp8), QuantizationScheme(fp8, 8)):
        with pytest.raises(UnsupportedSchemeError, match=r"'fp8' has levels .* rounds to whole"):
            quantize(scheme, scheme.name)


def test_levels_that_the_type_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedSchemeError, match="0 to 256 is not a range of torch.uint8"):
        NumberFormat("u8", torch.uint8, 0, 256)


def test_bits_that_no_format_has_are_refused_with_what_to_pass() -> None:
    with pytest.raises(UnsupportedSchemeError, match="32 bits stand for no format: pass 2 to 16"):
        QuantizationScheme(8, 32)


SHIFT8 = NumberFormat("8", torch.int8, -127, 127, symmetric=True, scales=power_of_two)
NPU = QuantizationScheme(SHIFT8, SHIFT8, "per_operator")


@pytest.fixture
def npu(toy_backend: type) -> Iterator[Callable[[], qcore.Quantizer]]:
    """A backend that scales weights of conv2d per tensor and those of linear per channel."""
    table = SupportTable(
        (
            OperatorPattern(
                "conv2d", (aten.conv2d.default,), GemmRule(integer_bias=True), CLAMPS,
                granularity="per_tensor",
            ),
            OperatorPattern(
                "linear", (aten.linear.default,), GemmRule(), granularity="per_channel"
            ),
        )
    )  # fmt: skip
    methods = {
        "supported_schemes": lambda self: [NPU, evolve(NPU, is_qat=True)],
        "annotate": lambda self, model, plan: annotate_graph(model, plan, table, "npu"),
    }
    hooks = {name: qcore.hookimpl(method) for name, method in methods.items()}
    qcore.register_backend("npu", type("Npu", (toy_backend,), hooks))
    yield lambda: qcore.get_quantizer("npu")
    registry.unregister_backend("npu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


PICTURES = [torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def is_power_of_two(scales: torch.Tensor) -> bool:
    return torch.equal(scales.log2(), scales.log2().round())


@pytest.mark.parametrize("is_qat", [False, True])
def test_weights_are_scaled_as_the_row_of_their_operator_says(
    npu: Callable[[], qcore.Quantizer], is_qat: bool
) -> None:
    result = qcore.quantize(network(), npu().set_global("8a8w"), PICTURES, is_qat=is_qat)
    qat = " QAT" if is_qat else ""
    assert result.report["conv2d"].scheme == f"8a8w static per-tensor{qat}"
    assert result.report["linear"].scheme == f"8a8w static per-channel{qat}"
    reads = [
        str(n.target).split(".")[1] for n in result.model.graph.nodes if "dequantize" in n.name
    ]
    assert reads.count("dequantize_per_channel") == 1  # the weight of the linear layer
    calls = [n.args for n in result.model.graph.nodes if ".dequantize_per_tensor" in str(n.target)]
    assert all(is_power_of_two(torch.tensor(args[1])) and args[2] == 0 for args in calls)
    # The int32 bias still has the scale of the accumulator.
    root = next(n for n in result.model.graph.nodes if n.target is aten.conv2d.default)
    x, weight, bias = (argument.args[1] for argument in root.args[:3])
    assert bias == x * weight


def test_a_configuration_of_other_numbers_is_refused_with_what_the_hardware_wants(
    npu: Callable[[], qcore.Quantizer],
) -> None:
    with pytest.raises(UnsupportedSchemeError) as caught:
        npu().set_global(qcore.get_symmetric_quantization_config(is_per_channel=True))
    message = str(caught.value)
    assert "npu does not execute 8a8w static per-channel." in message
    assert "It executes: 8a8w static per-operator." in message
    assert (
        "Its activations are symmetric int8, power-of-two scales from 0.000244; "
        "those of the configuration are asymmetric int8."
    ) in message


def test_a_scale_smaller_than_hardware_has_is_refused(npu: Callable[[], qcore.Quantizer]) -> None:
    small = evolve(SHIFT8, smallest_scale=2**-20)
    with pytest.raises(UnsupportedSchemeError, match="scales from 9.54e-07"):
        npu().set_global(QuantizationScheme(small, small, "per_tensor").to_config())


def test_a_users_granularity_is_never_replaced(npu: Callable[[], qcore.Quantizer]) -> None:
    config = evolve(NPU, granularity="per_channel").to_config()
    report = qcore.quantize(network(), npu().set_global(config), PICTURES).report
    assert report["linear"].scheme == "8a8w static per-channel"
    conv2d = report["conv2d"]
    assert conv2d.reason == (
        "npu scales weights of conv2d per-tensor, and its configuration per-channel"
    )
    assert conv2d.advice == 'Give it one that scales them per-tensor, such as "8a8w per-tensor".'
    mended = npu().set_global(config).set_operator_type(aten.conv2d.default, "8a8w per-tensor")
    assert qcore.quantize(network(), mended, PICTURES).report["conv2d"].is_quantized


def test_fixed_point_is_a_rule_for_scales() -> None:
    rule = FixedPoint(4)
    assert rule(torch.tensor([0.01, 0.0625, 0.07])).tolist() == [0.0625, 0.0625, 0.125]
    kind = NumberFormat("8", torch.int8, -127, 127, True, rule, smallest_scale=2**-4)
    assert kind.words == "symmetric int8, fixed-point (4 bits) scales from 0.0625"


def observer_of(spec: Any, **options: Any) -> Any:
    """Build the observer of a qspec, as torchao does."""
    shape = {"dtype": spec.dtype, "qscheme": spec.qscheme}
    limits = {"quant_min": spec.quant_min, "quant_max": spec.quant_max}
    return spec.observer_or_fake_quant_ctr(**shape, **limits, **options)


def scales_of(values: torch.Tensor, spec: Any, **options: Any) -> list[float]:
    observer = observer_of(spec, **options)
    observer(values)
    scales: list[float] = observer.calculate_qparams()[0].flatten().tolist()
    return scales


# What it takes to hold 1 without clipping is a little more than 2**-7.
JUST_ABOVE = torch.linspace(-1, 1, 4000).reshape(4, 1000)


def test_a_weights_scale_is_halved_where_clipping_costs_less_than_coarse_levels() -> None:
    one = SHIFT8.weight_qspec(is_per_channel=False)
    assert scales_of(JUST_ABOVE, one) == [2**-7]
    assert scales_of(JUST_ABOVE * 1.9, one) == [2**-6]
    each = SHIFT8.weight_qspec(is_per_channel=True)
    assert scales_of(JUST_ABOVE, each, ch_axis=0) == [2**-7, 2**-8, 2**-8, 2**-7]


def test_the_channels_of_a_weight_count_alike_however_large() -> None:
    weight = torch.cat([torch.full((1, 9), 1.5), torch.linspace(-0.01, 0.01, 63).reshape(7, 9)])
    spec = SHIFT8.weight_qspec(is_per_channel=False)
    assert scales_of(weight, spec) == [2**-7]  # Clips the first by a third; 2**-6 loses the others.


def test_the_scale_of_a_histogram_is_halved_where_that_costs_less() -> None:
    spec = SHIFT8.activation_qspec(HistogramObserver, is_dynamic=False)
    assert scales_of(JUST_ABOVE, spec) == [2**-7]
    assert scales_of(JUST_ABOVE * 1.9, spec) == [2**-6]


def test_min_max_clips_nothing_whatever_scales_there_are() -> None:
    spec = SHIFT8.activation_qspec(torch_min_max(), is_dynamic=False)
    assert scales_of(JUST_ABOVE, spec) == [2**-6]
