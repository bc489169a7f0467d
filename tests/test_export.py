"""A model on its way into a compiler is a copy without guards."""

from __future__ import annotations

import pytest
import torch

from qcore.errors import LoweringError
from qcore.lowering import export_for_lowering


def test_guards_in_the_graph_are_dropped_and_the_model_is_left_alone() -> None:
    module = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(2, 4),)).module()
    before = [(node.name, sorted(node.meta)) for node in module.graph.nodes]
    assert any(name == "_guards_fn" for name, _ in before)

    exported = export_for_lowering(module, (torch.ones(2, 4),))

    assert not any("guards" in node.name for node in exported.graph.nodes)
    assert [(node.name, sorted(node.meta)) for node in module.graph.nodes] == before


def test_a_model_on_another_device_is_refused_with_what_to_call() -> None:
    module = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(2, 4),)).module()
    with pytest.raises(LoweringError, match=r"'weight' is on meta.*model.cpu\(\) before"):
        export_for_lowering(module.to("meta"), (torch.ones(2, 4),))
