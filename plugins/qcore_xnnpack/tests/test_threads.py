"""Two threads that quantize and lower at the same time get the programs they would get alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import qcore

X = torch.linspace(-2, 2, 3 * 8 * 8).reshape(1, 3, 8, 8)


def _models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 5)).eval(),
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Hardswish(), nn.Conv2d(6, 2, 1)).eval(),
    ]


def _lower(model: nn.Module) -> qcore.LoweredProgram:
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    return quantizer.lower(qcore.quantize(model, quantizer, [X]).model, (X,))


def test_both_programs_are_those_of_one_thread() -> None:
    alone = [_lower(model) for model in _models()]
    start = threading.Barrier(2)

    def together(model: nn.Module) -> qcore.LoweredProgram:
        start.wait()
        return _lower(model)

    with ThreadPoolExecutor(2) as pool:
        programs = list(pool.map(together, _models()))
    for expected, program in zip(alone, programs, strict=True):
        assert program.delegated == expected.delegated
        torch.testing.assert_close(program.run(X), expected.run(X), rtol=0, atol=0)
