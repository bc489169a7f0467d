"""A run of ``quantize_`` that was cut off goes on from what it has kept."""

import signal
import subprocess
import sys
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


def quantized(folder: Path | None, algorithm: str | WeightAlgorithm, seed: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), Block()).eval()
    torch.manual_seed(seed)
    data = [torch.randn(8, 32) for _ in range(2)]
    qcore.quantize_(
        model, "xnnpack", "8da4w", algorithm=algorithm, calibration_data=data, resume=folder
    )
    return model


def run(folder: Path | None, cut_at: int = 0, seed: int = 0) -> tuple[int, nn.Module]:
    """Quantize a model, and return how many weights were chosen in this run, and the model."""
    algorithm = Counted(cut_at)
    model = quantized(folder, algorithm, seed)
    return algorithm.count, model


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for name, value in other.state_dict().items():
        if name.endswith("weight"):
            assert torch.equal(model.state_dict()[name].qdata, value.qdata)
            assert torch.equal(model.state_dict()[name].scale, value.scale)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(KeyboardInterrupt):
        run(folder, CUT_AT)
    return folder


def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(cut_off):
    count, model = run(cut_off)
    assert count == 6 - (CUT_AT - 1)
    assert_same_weights(model, run(None)[1])


#: Runs in a process of its own, which is killed when a file is written and has not its name yet.
KILLED = f"""
import os, signal, sys
from pathlib import Path

folder, tests = map(Path, sys.argv[1:])
sys.path.insert(0, str(tests))
import test_resuming

replace = os.replace

def killed(source, target):
    if len(list(folder.rglob("[0-9].pt"))) == {CUT_AT - 1}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killed
test_resuming.quantized(folder, "gptq")
"""


def test_a_process_that_was_killed_leaves_what_the_next_goes_on_from(tmp_path, monkeypatch):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    chosen, choose = [], Gptq.choose

    def counted(self, weight, *others):
        chosen.append(weight)
        return choose(self, weight, *others)

    monkeypatch.setattr(Gptq, "choose", counted)
    model = quantized(tmp_path, "gptq")
    assert len(chosen) == 6 - (CUT_AT - 1)
    assert_same_weights(model, quantized(None, "gptq"))


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
