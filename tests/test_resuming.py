"""A run of ``quantize_`` that was cut off goes on from what it has kept."""

from pathlib import Path

import pytest
import torch
from torch import nn

import qcore
from qcore.algorithms import Gptq, WeightAlgorithm
from qcore.errors import CalibrationError

#: The weight that a run is cut off at, of two in each of three blocks.
CUT_AT = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return x + self.b(torch.tanh(self.a(x)))


class Counted(WeightAlgorithm):
    """GPTQ that counts its calls, and in one of them may be stopped from the keyboard."""

    name, uses_samples = "counted", True

    def __init__(self, cut_at: int) -> None:
        self.cut_at, self.count = cut_at, 0

    def __repr__(self) -> str:
        return self.name

    def choose(self, weight, grid, moment):
        self.count += 1
        if self.count == self.cut_at:
            raise KeyboardInterrupt
        return Gptq().choose(weight, grid, moment)


def run(folder: Path | None, cut_at: int = 0, seed: int = 0) -> tuple[int, nn.Module]:
    """Quantize a model, and return how many weights were chosen in this run, and the model."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), Block()).eval()
    torch.manual_seed(seed)
    data = [torch.randn(8, 32) for _ in range(2)]
    algorithm = Counted(cut_at)
    qcore.quantize_(
        model, "xnnpack", "8da4w", algorithm=algorithm, calibration_data=data, resume=folder
    )
    return algorithm.count, model


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(KeyboardInterrupt):
        run(folder, CUT_AT)
    return folder


def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(cut_off):
    count, model = run(cut_off)
    assert count == 6 - (CUT_AT - 1)
    _, whole = run(None)
    for name, value in whole.state_dict().items():
        other = model.state_dict()[name]
        if name.endswith("weight"):
            assert torch.equal(value.qdata, other.qdata)
            assert torch.equal(value.scale, other.scale)


def test_other_samples_are_another_run(cut_off):
    assert run(cut_off, seed=1)[0] == 6


def test_a_run_that_was_finished_chooses_nothing_again(tmp_path):
    assert run(tmp_path)[0] == 6
    count, _ = run(tmp_path)
    assert count == 0


def test_a_folder_that_is_a_file_is_refused_before_a_weight_changes(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CalibrationError, match="cannot be a folder"):
        run(path)


def test_an_algorithm_that_learns_nothing_from_samples_has_nothing_to_keep(tmp_path):
    model = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(CalibrationError, match="uses none"):
        qcore.quantize_(model, "xnnpack", "8da4w", algorithm="mse", resume=tmp_path)
