"""A layer in four bits that the delegate gets wrong is computed by kernels, and is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore_xnnpack.lowering import XnnpackLowering


def test_a_layer_that_is_wrong_in_the_delegate_is_named_and_right_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = XnnpackLowering.executed

    def executed(self: Any, program: Any, inputs: Any) -> Any:
        wrong = [n for n in program.report.delegated if n.operator == "aten.linear.default"]
        scale = 3.0 if any(n.module == "2" for n in wrong) else 1.0
        return [scale * output for output in theirs(self, program, inputs)]

    monkeypatch.setattr(XnnpackLowering, "executed", executed)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Sigmoid()).eval()
    qcore.quantize_(model, "xnnpack", "8da4w", group_size=32)
    x = torch.randn(4, 32)
    program = qcore.get_quantizer("xnnpack").lower(model, (x,))
    (mended,) = program.report.mended
    assert "in 2" in str(mended)
    assert program.report.delegated_ops["aten.linear.default"] == 1
    torch.testing.assert_close(program.run(x), model(x), atol=0.01, rtol=0.01)
