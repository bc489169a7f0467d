"""Schemes: names, configurations, and what a backend is asked to execute."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationConfig

import qcore
from qcore.errors import UnsupportedSchemeError
from qcore.schemes import QuantizationScheme, check_scheme, resolve_config

SCHEMES = tuple(
    QuantizationScheme(8, 8, granularity, is_dynamic)
    for is_dynamic in (False, True)
    for granularity in ("per_channel", "per_tensor")
)

any_scheme = st.builds(
    QuantizationScheme,
    weight_bits=st.sampled_from([2, 4, 8]),
    activation_bits=st.sampled_from([None, 8, 16]),
    granularity=st.sampled_from(["per_channel", "per_tensor"]),
    is_dynamic=st.booleans(),
    is_qat=st.booleans(),
).filter(lambda s: s.activation_bits is not None or not (s.is_dynamic or s.is_qat))


@given(any_scheme)
def test_a_configuration_built_from_a_scheme_has_that_scheme(scheme: QuantizationScheme) -> None:
    assert QuantizationScheme.from_config(scheme.to_config()) == scheme


@given(any_scheme)
def test_a_scheme_is_found_by_its_own_words(scheme: QuantizationScheme) -> None:
    ptq = evolve(scheme, is_qat=False)
    name = f"{ptq.name} {ptq.granularity.replace('_', '-')}"
    config = resolve_config(name, (*SCHEMES, ptq), "toy")
    assert config is not None
    assert QuantizationScheme.from_config(config) == ptq


@given(any_scheme, any_scheme)
def test_covering_is_equality_or_fewer_levels_in_the_same_type(
    stored: QuantizationScheme, asked: QuantizationScheme
) -> None:
    assert stored.covers(stored)
    if stored.covers(asked):
        assert (asked.weight_bits or 0) <= (stored.weight_bits or 0)
        assert asked.granularity == stored.granularity
        assert asked.is_dynamic == stored.is_dynamic


@pytest.mark.parametrize(
    ("scheme", "name", "words"),
    [
        (QuantizationScheme(), "8a8w", "8a8w static per-channel"),
        (QuantizationScheme(4, 8, is_dynamic=True), "8da4w", "8da4w dynamic per-channel"),
        (QuantizationScheme(8, 16, "per_tensor"), "16a8w", "16a8w static per-tensor"),
        (QuantizationScheme(8, None), "8w", "8w weight-only per-channel"),
        (QuantizationScheme(is_qat=True), "8a8w", "8a8w static per-channel QAT"),
    ],
)
def test_schemes_are_named_as_the_field_names_them(
    scheme: QuantizationScheme, name: str, words: str
) -> None:
    assert (scheme.name, str(scheme)) == (name, words)


def test_a_name_without_granularity_means_the_preferred_one() -> None:
    config = resolve_config("8a8w", SCHEMES, "toy")
    assert QuantizationScheme.from_config(config) == SCHEMES[0]


def test_none_stays_none() -> None:
    assert resolve_config(None, SCHEMES, "toy") is None


@pytest.mark.parametrize("positional", [True, False])
def test_the_builder_takes_the_parameters_that_scripts_pass(positional: bool) -> None:
    names = ("is_per_channel", "is_qat", "is_dynamic", "act_qmin", "act_qmax", "weight_qmin")
    values: tuple[Any, ...] = (True, False, False, -100, 100, -63)
    if positional:
        config = qcore.get_symmetric_quantization_config(*values)
    else:
        config = qcore.get_symmetric_quantization_config(**dict(zip(names, values, strict=True)))
    assert config.input_activation.quant_min == -100
    assert config.weight.quant_min == -63
    assert config.weight.qscheme is torch.per_channel_symmetric


def test_dynamic_leaves_outputs_in_float() -> None:
    config = qcore.get_symmetric_quantization_config(is_dynamic=True)
    assert config.output_activation is None
    assert config.input_activation.is_dynamic


def test_an_observer_of_ones_own_can_be_chosen() -> None:
    config = qcore.get_symmetric_quantization_config(act_observer=MinMaxObserver)
    observer = config.input_activation.observer_or_fake_quant_ctr(dtype=torch.int8)
    assert type(observer) is MinMaxObserver


@pytest.mark.parametrize(
    "arguments", [{"act_qmin": 5, "act_qmax": 5}, {"act_qmax": 300}, {"weight_qmin": -300}]
)
def test_an_impossible_range_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UnsupportedSchemeError, match="is not a range of torch.int8: pass"):
        qcore.get_symmetric_quantization_config(**arguments)


def test_configurations_are_equal_hashable_and_pickle() -> None:
    config = qcore.get_symmetric_quantization_config(is_per_channel=True)
    assert hash(config) == hash(qcore.get_symmetric_quantization_config(is_per_channel=True))
    copied = pickle.loads(pickle.dumps(config))
    assert QuantizationScheme.from_config(copied) == QuantizationScheme.from_config(config)


def test_weight_only_is_refused_with_what_is_executed_and_the_next_step() -> None:
    weight = qcore.get_symmetric_quantization_config().weight
    with pytest.raises(UnsupportedSchemeError) as caught:
        resolve_config(QuantizationConfig(None, None, weight, None), SCHEMES, "toy")
    message = str(caught.value)
    assert "toy does not execute weight-only quantization (weights int8, activations" in message
    assert "It executes: 8a8w static per-channel, 8a8w static per-tensor" in message
    assert "Pass a configuration with input_activation set" in message


def test_activation_only_is_refused() -> None:
    activation = qcore.get_symmetric_quantization_config().input_activation
    with pytest.raises(UnsupportedSchemeError, match="activation-only.*\n.*\n.*weight set"):
        resolve_config(QuantizationConfig(activation, activation, None, None), SCHEMES, "toy")


def test_a_scheme_that_is_not_executed_is_refused() -> None:
    with pytest.raises(UnsupportedSchemeError, match="toy does not execute 16a8w static"):
        check_scheme(QuantizationScheme(8, 16), SCHEMES, "toy")


@pytest.mark.parametrize("name", ["8a9", "int8", "", "8a8w per-row"])
def test_a_mistyped_name_lists_the_schemes(name: str) -> None:
    with pytest.raises(UnsupportedSchemeError, match=r"is not a scheme's name. toy executes: 8a8w"):
        resolve_config(name, SCHEMES, "toy")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("int8", r"Did you mean '8a8w'\?$"),
        ("W8-A8", r"Did you mean '8a8w'\?$"),
        ("16x8", "qcore calls it '16a8w', which toy does not execute in this flow.$"),
    ],
)
def test_a_name_of_another_tool_is_translated(name: str, hint: str) -> None:
    with pytest.raises(UnsupportedSchemeError, match=hint):
        resolve_config(name, SCHEMES, "toy")


def test_something_else_is_refused_with_how_to_build_a_configuration() -> None:
    with pytest.raises(
        UnsupportedSchemeError, match="got dict.*Build one with qcore.get_symmetric"
    ):
        resolve_config({"bits": 8}, SCHEMES, "toy")  # type: ignore[arg-type]


def test_a_model_quantized_for_another_backend_is_refused_by_name(
    toy: Callable[[], qcore.Quantizer], toy_backend: type
) -> None:
    class Dynamic(toy_backend):  # type: ignore[misc]
        @qcore.hookimpl
        def supported_schemes(self) -> Any:
            return [s for s in super().supported_schemes() if s.is_dynamic]

    x = torch.rand(2, 4)
    result = qcore.quantize(torch.nn.Linear(4, 4), toy().set_global("8a8w"), [x])
    with pytest.raises(UnsupportedSchemeError, match="quantized for toy with 8a8w.*and other exec"):
        qcore.Quantizer(Dynamic(), "other").lower(result.model, (x,))
    with pytest.raises(qcore.QcoreError, match="toy lowers nothing"):
        qcore.Quantizer(toy_backend(), "other").lower(result.model, (x,))
