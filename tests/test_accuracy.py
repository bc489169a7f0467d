"""A quantized model that is far from float is said, with where that happens and what to try."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import qcore
from qcore.errors import CalibrationWarning


class Network(torch.nn.Module):
    """What a function computes between two linear layers."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (64, 4) of (64, 16)."""
        y: torch.Tensor = self.after(self.between(self.before(x)))
        return y


def samples() -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(64, 16, generator=source) for _ in range(8)]


def quantized(model: torch.nn.Module, quantizer: qcore.Quantizer) -> tuple[str, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return tuple(
            w
            for w in qcore.quantize(model.eval(), quantizer, samples()).report.warnings
            if "far from float" in w
        )


def of(backend: str, scheme: str = "8a8w", **options: Any) -> qcore.Quantizer:
    return qcore.get_quantizer(backend, **options).set_global(scheme)


def wide_range(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x * 1e4, x], 1)[:, 16:]


def division(x: torch.Tensor) -> torch.Tensor:
    return 1 / x


CASES = [
    (division, r"at 'reciprocal' \(aten.reciprocal.default\): its result is not finite"),
    (wide_range, r"at 'linear' .*in 'before'\): its values reach [\d.]+ and half .* a step of its"),
]


@pytest.mark.parametrize(("between", "why"), CASES)
def test_the_node_and_the_cause_are_named(
    between: Callable[[torch.Tensor], torch.Tensor], why: str
) -> None:
    (said,) = quantized(Network(between), of("xnnpack"))
    assert re.search(rf"output 0 has -?[\d.]+ dB, .* It happens {why}", said), said


def test_a_quantizer_of_another_constructor_is_asked_for_its_other_schemes() -> None:
    class Own(qcore.Quantizer):
        def __init__(self) -> None:
            spec = "TOSA-1.0+INT+int16"
            super().__init__(qcore.get_quantizer("tosa", compile_spec=spec).backend)

    (said,) = quantized(Network(wide_range), Own().set_global("8a8w"))
    assert "set_global('16a8w')" in said


@pytest.mark.parametrize("between", [case[0] for case in CASES])
def test_the_advice_brings_the_model_near(
    between: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model, quantizer = Network(between), of("xnnpack")
    (said,) = quantized(model, quantizer)
    for name in re.findall(r"set_node_name\('(\w+)', None\)", said):
        quantizer.set_node_name(name, None)
    assert not quantized(model, quantizer)


def test_activations_of_16_bits_are_offered_where_the_backend_has_them() -> None:
    (on_tosa,) = quantized(Network(wide_range), of("tosa", compile_spec="TOSA-1.0+FP+INT+int16"))
    (on_xnnpack,) = quantized(Network(wide_range), of("xnnpack"))
    assert "set_global('16a8w')" in on_tosa
    assert "16a8w" not in on_xnnpack


def test_float_is_not_offered_by_a_backend_that_executes_whole_models() -> None:
    (said,) = quantized(Network(wide_range), of("ethosu", target="ethos-u85-256"))
    assert "set_node_name" not in said
    assert "compute that part outside of the model" in said


def test_a_model_near_float_or_with_integer_outputs_is_passed_over() -> None:
    class Chosen(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    assert not quantized(Network(torch.relu), of("xnnpack"))
    assert not quantized(Chosen(division), of("xnnpack"))


def test_a_model_with_a_state_is_not_compared() -> None:
    class Counting(Network):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.register_buffer("seen", torch.zeros(64, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(100 * x.abs())
            return super().forward(self.seen)

    assert not quantized(Counting(), of("xnnpack"))
