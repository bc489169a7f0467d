"""What is changed and overridden of ExecuTorch's XNNPACK partitioner fits it, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcore
from qcore.errors import QcoreError
from qcore.testing.compat import LibraryChanges
from qcore_executorch import ExecuTorchRunner, import_executorch
from qcore_xnnpack import lowering
from qcore_xnnpack.compat import executorch as compat

IMAGE = torch.linspace(-1, 1, 3 * 16).reshape(1, 3, 4, 4)


class TestChanges(LibraryChanges):
    package = "qcore_xnnpack"


class _Image(nn.Module):
    """A convolution, and what reads the image that it gives."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 3, 1), then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self.conv(x))


def _without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(compat, name, attrs.evolve(getattr(compat, name), only="<0"))


def test_a_softmax_of_images_beside_convolutions_is_one_over_the_channels() -> None:
    model = _Image(lambda y: y.softmax(-1)).eval()
    exir, expected = import_executorch(), model(IMAGE)
    theirs = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")

    def is_right(partitioner: Any) -> bool:
        exported = torch.export.export(model, (IMAGE,))
        edge = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner])
        found = ExecuTorchRunner().run(edge.to_executorch().buffer, [IMAGE])[0]
        return torch.allclose(found, expected, atol=1e-5)

    assert is_right(lowering._partitioner())
    assert not is_right(theirs.XnnpackPartitioner())


def test_a_value_that_one_reader_needs_in_another_memory_format_is_wrong_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    converted = qcore.quantize(_Image(F.logsigmoid).eval(), quantizer, [IMAGE]).model

    def result() -> torch.Tensor | None:
        with suppress(QcoreError):
            return quantizer.lower(converted, (IMAGE,), check=False).run(IMAGE)
        return None

    right = result()
    assert right is not None
    _without(monkeypatch, "_COPIES")
    wrong = result()
    assert wrong is None or not torch.allclose(wrong, right, atol=0.02)


@pytest.mark.parametrize("changed", [True, False])
def test_passes_run_where_nothing_is_for_them(
    changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, ran = import_executorch("executorch.backends.xnnpack._passes"), []
    theirs = passes.FuseBatchNormPass.call
    monkeypatch.setattr(
        passes.FuseBatchNormPass, "call", lambda *args: ran.append(None) or theirs(*args)
    )
    if not changed:
        _without(monkeypatch, "_PASSES")
    exported = torch.export.export(nn.Linear(4, 4).eval(), (torch.zeros(1, 4),))
    qcore.get_quantizer("xnnpack").lower(exported, None, check=False)
    assert bool(ran) is not changed
