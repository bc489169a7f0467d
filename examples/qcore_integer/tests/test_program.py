"""Programs of a format that qcore knows nothing of: computed in integers, saved and read back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import LoweringError, RuntimeExecutionError
from qcore.lowering import LoweredProgram, run_program

SAMPLES = torch.randn(4, 2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).unbind()
X = SAMPLES[0]


class Network(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.pool(x + self.second(x)).flatten(1))


@pytest.fixture(scope="module")
def converted() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    quantizer = qcore.get_quantizer("integer").set_global("8a8w")
    return qcore.quantize(Network().eval(), quantizer, SAMPLES).model


@pytest.fixture(scope="module")
def program(converted: torch.fx.GraphModule) -> LoweredProgram:
    return qcore.get_quantizer("integer").lower(converted, (X,))


def test_every_operator_is_computed_in_integers(program: LoweredProgram) -> None:
    report = program.report
    assert not report.undelegated
    assert [node.operator for node in report.stray] == [
        "quantized_decomposed.quantize_per_tensor.default",  # of the input
        "quantized_decomposed.dequantize_per_tensor.default",  # of the output
    ]


def test_a_program_differs_from_the_converted_model_by_one_step_at_most(
    program: LoweredProgram, converted: torch.fx.GraphModule
) -> None:
    expected, actual = converted(X), program.run(X)
    step = (expected.unique().diff()).min()
    assert (expected - actual).abs().max() <= 1.01 * step


def test_what_save_wrote_is_read_back_and_runs(program: LoweredProgram, tmp_path: Path) -> None:
    path = program.save(tmp_path / "network.qint")
    read = LoweredProgram.load(path)
    for name in ("buffer", "suffix", "backend", "report", "runner", "inputs", "structure"):
        assert getattr(read, name) == getattr(program, name), name
    expected = program.run(X)
    assert torch.equal(read.run(X), expected)
    assert torch.equal(run_program(path, [X])[0], expected)


def test_a_truncated_file_is_refused(program: LoweredProgram, tmp_path: Path) -> None:
    path = tmp_path / "network.qint"
    path.write_bytes(program.buffer[:-30])
    with pytest.raises(RuntimeExecutionError, match="no whole program of qcore-integer"):
        LoweredProgram.load(path)


def test_an_operator_without_a_kernel_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ELU()).eval()
    quantizer = qcore.get_quantizer("integer").set_global("8a8w")
    result = qcore.quantize(model, quantizer, torch.randn(4, 2, 4).unbind())
    with pytest.raises(LoweringError, match=r"no kernel for aten.elu.default \(elu in 1\)"):
        quantizer.lower(result.model, (torch.randn(2, 4),))


def test_a_run_can_be_timed(program: LoweredProgram) -> None:
    assert program.benchmark(X, warmup=1, runs=3).runs == 3


def test_nothing_of_it_needs_another_backend() -> None:
    assert not [name for name in sys.modules if name.startswith("executorch")]
