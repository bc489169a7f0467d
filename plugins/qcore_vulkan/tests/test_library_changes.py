"""Each change that is made to ExecuTorch's Vulkan partitioner fits it, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from executorch.backends.vulkan import patterns
from executorch.backends.vulkan.patterns import rope

import qcore
from qcore.errors import LoweringError
from qcore.testing.compat import LibraryChanges
from qcore_vulkan import partition
from qcore_vulkan.compat.executorch import patterns_exported_once


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


@pytest.mark.parametrize(
    ("context", "again"), [(nullcontext, True), (patterns_exported_once, False)]
)
def test_patterns_of_rotary_embeddings_are_exported_at_each_look(
    context: Any, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, theirs = [], rope.export
    monkeypatch.setattr(rope, "export", lambda *a, **kw: exported.append(a) or theirs(*a, **kw))
    graph = torch.fx.symbolic_trace(torch.nn.Linear(4, 4))
    with context():
        patterns.get_all_fusable_subgraphs(graph)
        exported.clear()
        patterns.get_all_fusable_subgraphs(graph)
    assert bool(exported) is again
