"""Each change that is made to ExecuTorch's Vulkan partitioner fits it, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change.
"""

from __future__ import annotations

import pytest
import torch

import qcore
from qcore.errors import LoweringError
from qcore.testing.compat import LibraryChanges
from qcore_vulkan import partition


class TestChanges(LibraryChanges):
    package = "qcore_vulkan"


class _Clamped(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x * 2, 0.0, torch.inf)


def test_a_delegate_takes_an_infinite_argument_that_its_serialization_stops_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantizer, x = qcore.get_quantizer("vulkan"), torch.rand(2, 4)
    program = torch.export.export(_Clamped(), (x,))
    assert quantizer.backend.lower(program, {}).report.undelegated
    (theirs,) = partition.OPERATORS.originals()
    monkeypatch.setattr(partition, "_operators", lambda: theirs)
    # ExecuTorch 1.5 writes it, and nobody can decode what is written.
    with pytest.raises((LoweringError, ValueError)):
        quantizer.backend.lower(program, {"check": False})


def test_a_copy_of_an_input_is_dropped() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    copied = graph.call_function(torch.ops.aten.clone.default, (x,))
    for node in (x, copied):
        node.meta["val"] = torch.empty(2, 3)
    theirs, ours = partition.COPIES.target()(), partition._drop_copies()
    theirs.redundant_ops = ours.redundant_ops = {copied.target}
    assert (theirs._should_remove(copied), ours._should_remove(copied)) == (True, False)
