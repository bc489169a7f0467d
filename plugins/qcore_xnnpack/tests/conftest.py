"""The way from a model to a program that has run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import nn

import qcore
from qcore.lowering import LoweredProgram


@frozen
class Run:
    """A model that went all the way, and what each stage gave for the same inputs."""

    result: qcore.QuantizedModel
    program: LoweredProgram
    float_output: torch.Tensor
    converted_output: torch.Tensor
    program_output: torch.Tensor

    @property
    def last_scale(self) -> float:
        """The step of the last quantization."""
        target = torch.ops.quantized_decomposed.quantize_per_tensor.default
        return [n.args[1] for n in self.result.model.graph.nodes if n.target is target][-1]

    @property
    def steps(self) -> torch.Tensor:
        """Differences between program and converted model, in steps of the last quantization."""
        return (self.program_output - self.converted_output).abs() / self.last_scale


@pytest.fixture
def through() -> Callable[..., Run]:
    """Quantizes, lowers and runs a model on the real XNNPACK runtime."""

    def go(model: nn.Module, *inputs: torch.Tensor, scheme: Any = "8a8w", **options: Any) -> Run:
        torch.manual_seed(0)
        quantizer = qcore.get_quantizer("xnnpack").set_global(scheme)
        sizes = range(8, 12) if any(x.is_floating_point() for x in inputs) else [8]
        samples = [
            tuple(x * (k / 8) if x.is_floating_point() else x for x in inputs) for k in sizes
        ]
        result = qcore.quantize(model.eval(), quantizer, samples, **options)
        program = quantizer.lower(result.model, inputs)
        return Run(
            result,
            program,
            model(*inputs).detach(),
            result.model(*inputs),
            program.run(*inputs),
        )

    return go
