"""A quantized model that went through a file gives the same program."""

from __future__ import annotations

import torch
from torch import nn

import qcore


def test_the_program_of_a_saved_model_is_the_same_to_the_byte(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(288, 4))
    sample = torch.randn(1, 3, 8, 8)
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w").set_module_name("3", None)
    result = qcore.quantize(model, quantizer, [sample])
    loaded = qcore.load_quantized(result.save(tmp_path / "model.qpt2"))
    straight, detour = quantizer.lower(result, sample), quantizer.lower(loaded.model, sample)
    assert detour.buffer == straight.buffer
    assert detour.report == straight.report
