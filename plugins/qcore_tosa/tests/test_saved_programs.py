"""A program takes along the TOSA graphs that it was compiled from, and runs where it is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import qcore
from qcore.errors import RuntimeExecutionError
from qcore.lowering import LoweredProgram
from qcore_tosa import TosaQuantizer
from qcore_tosa.calls import read_calls, with_calls, written

X = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):  # type: ignore[misc]
    """Two delegates, operators in float between them, a conditional, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.special.i0(self.first(x).relu())
        z = torch.cond(x.mean() > 0, lambda v: v.relu() * 2, lambda v: v * 3, (y,))
        return {"a": self.last(z), "b": y}


def lowered(model: nn.Module) -> LoweredProgram:
    quantizer = TosaQuantizer("TOSA-1.0+FP+INT").set_global("8a8w")
    return quantizer.lower(qcore.quantize(model.eval(), quantizer, [X, -X]).model, (X,))


@pytest.fixture(scope="module")
def program() -> LoweredProgram:
    return lowered(Branching())


def same(one: Any, other: Any) -> bool:
    return all(map(torch.equal, tree_leaves(one), tree_leaves(other)))


def test_a_file_and_a_pickle_run_with_several_delegates_and_bodies(
    program: LoweredProgram, tmp_path: Path
) -> None:
    assert program.report.delegates > 1
    expected = program.run(X)
    loaded = LoweredProgram.load(program.save(tmp_path / "model.pte"))
    for other in (loaded, pickle.loads(pickle.dumps(program))):
        assert list(other.run(X)) == ["a", "b"]
        assert same(other.run(X), expected)


def test_what_was_loaded_is_saved_again(program: LoweredProgram, tmp_path: Path) -> None:
    first = program.save(tmp_path / "first.pte")
    second = LoweredProgram.load(first).save(tmp_path / "second.pte")
    assert second.read_bytes() == first.read_bytes()


def test_two_lowerings_give_the_same_file(program: LoweredProgram, tmp_path: Path) -> None:
    first = program.save(tmp_path / "first.pte").read_bytes()
    assert lowered(Branching()).save(tmp_path / "second.pte").read_bytes() == first


def test_no_input_of_the_users_goes_into_the_file(program: Any) -> None:
    assert read_calls(written(with_calls(program.partitioned))).example_inputs is None


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(RuntimeExecutionError, match="or lower the quantized model again"):
        read_calls(b"no archive")
