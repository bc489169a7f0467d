"""Tiny models, and the programs that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from qcore.lowering import LoweredProgram, export_for_lowering
from qcore_executorch import ExecuTorchLowering, ExecuTorchRunner, import_executorch

torch.set_num_threads(1)

FIXTURES = str(Path(__file__).parent / "child_modules")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return torch.cumsum(torch.relu(self.conv(x)), 1)


class Net(torch.nn.Module):
    """A convolution that XNNPACK takes, a cumsum that it does not, a padding that it crashes on."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))


def xnnpack_partitioner():
    module = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    return module.XnnpackPartitioner()


def lower(model, example_inputs, **options) -> LoweredProgram:
    options.setdefault("partitioners", [xnnpack_partitioner()])
    options.setdefault("runner", ExecuTorchRunner(backends=("XnnpackBackend",), timeout_s=60))
    options.setdefault("check", False)
    dynamic_shapes = options.pop("dynamic_shapes", None)
    exported = export_for_lowering(model, example_inputs, dynamic_shapes)
    return ExecuTorchLowering("xnnpack", **options).lower(exported)


def runner_with(module: str, **options) -> ExecuTorchRunner:
    """A runner whose child imports a module of this folder first."""
    path = os.pathsep.join([FIXTURES, os.environ.get("PYTHONPATH", "")])
    return ExecuTorchRunner(modules=(module,), env={"PYTHONPATH": path}, **options)


@pytest.fixture(scope="session")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def sample() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


@pytest.fixture(scope="session")
def exported(net, sample):
    batch = torch.export.Dim("batch", min=1, max=8)
    return torch.export.export(net, (sample,), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="session")
def program(exported, sample) -> LoweredProgram:
    """The float net lowered for XNNPACK, with a batch of 1 to 8."""
    return lower(exported.module(), (sample,))
