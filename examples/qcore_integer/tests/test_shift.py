"""Hardware that shifts: what its numbers look like is declared, and holds down to the program."""

from __future__ import annotations

import io
import json

import numpy as np
import torch
from torch import nn

import qcore
from qcore.testing import BackendConformance

SAMPLES = torch.randn(4, 2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).unbind()
X = SAMPLES[0]


class TestConformance(BackendConformance):
    backend = "shift"


def test_a_program_scales_by_shifts_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    quantizer = qcore.get_quantizer("shift").set_global("8a8w")
    result = qcore.quantize(model, quantizer, SAMPLES)
    assert result.report["conv2d"].scheme == "8a8w static per-tensor"
    assert result.report["linear"].scheme == "8a8w static per-channel"
    program = quantizer.lower(result.model, (X,))
    assert not program.report.undelegated
    archive = np.load(io.BytesIO(program.buffer))
    for step in json.loads(str(archive["program"]))["steps"]:
        how = step["integer"] or {"zeros": [], "factors": []}
        factors = [archive[str(part["constant"])] for part in how["factors"]]
        assert all(np.array_equal(np.exp2(np.rint(np.log2(c))), c) for c in factors), step["op"]
        assert not any(how["zeros"])
    assert torch.equal(program.run(X), result.model(X))
