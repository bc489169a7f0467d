"""XNNPACK's passes are left out only where they would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcore
from qcore_executorch import import_executorch, lowering
from qcore_xnnpack.compat import executorch as changes


class Everything(nn.Module):
    """Holds what each of the passes is for."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConstantPad2d(1, 0.0), nn.PReLU(4)
        )
        self.row = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.Hardtanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.image(x), scale_factor=2.0, mode="bilinear")
        y = self.row(x.flatten(2)).softmax(-1)
        return torch.cat([y, y, y, y, y, y], 1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "everything": (Everything, (1, 3, 8, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (1, 6, 16)),
    "linear": (lambda: nn.Linear(16, 16), (2, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_program_is_the_same_with_all_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    exported = torch.export.export(model, (torch.randn(shape),))
    quantizer = qcore.get_quantizer("xnnpack")
    quick = quantizer.lower(exported, None, check=False).buffer
    monkeypatch.setattr(changes, "_FOR", {})
    assert quantizer.lower(exported, None, check=False).buffer == quick


def test_a_pass_without_an_operator_that_it_is_for_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = import_executorch("executorch.backends.xnnpack._passes").XNNPACKPassManager
    kept: list[str] = []
    (original,) = changes._PASSES.originals()

    def transform(self: object) -> object:
        kept.extend(one.__name__ for one in self.passes)  # type: ignore[attr-defined]
        return original(self)

    monkeypatch.setattr(manager, "transform", transform)
    exported = torch.export.export(nn.Linear(16, 16).eval(), (torch.randn(2, 16),))
    qcore.get_quantizer("xnnpack").lower(exported, None, check=False)
    assert kept
    assert not set(kept) & set(changes._FOR)


def test_a_program_is_the_same_when_torch_and_executorch_trace_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).eval()
    qcore.quantize_(model, "xnnpack", "8da4w", group_size=32)
    sizes = {0: torch.export.Dim("rows", min=1, max=16)}
    quantizer = qcore.get_quantizer("xnnpack")

    def lowered() -> bytes:
        example = (torch.randn(4, 64),)
        return quantizer.lower(model, example, dynamic_shapes=(sizes,), check=False).buffer

    quick = lowered()
    for name in ("quick_fakes", "sparing_decompositions"):
        monkeypatch.setattr(lowering, name, nullcontext)
    assert lowered() == quick
