"""A small model, its data and the command, in a folder of their own."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner, Result

from qcore.cli.app import app

FACTORY = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )

def planted():
    model = net()
    with torch.no_grad():
        # The first channel is always zero, so the large weights on it change nothing but scales.
        model[0].weight[0], model[0].bias[0] = 0, -1
        model[2].weight[:, 0] = 300
    return model

samples = list(torch.rand(8, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
number = 7

def broken():
    raise ValueError("no weights here")
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module ``shop`` and data of each kind, from which the commands run."""
    made = tmp_path_factory.mktemp("shop")
    (made / "shop.py").write_text(FACTORY)
    rows = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    numpy.savez(made / "rows.npz", x=rows.numpy())
    torch.save(list(rows.split(1)), made / "rows.pt")
    yield made
    sys.modules.pop("shop", None)
    sys.path[:] = [path for path in sys.path if path != str(made)]


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


Command = Callable[..., Result]


@pytest.fixture(scope="session")
def qcore(folder: Path) -> Command:
    """Runs the command in this process."""

    def run(*arguments: str | Path) -> Result:
        with contextlib.chdir(folder):
            return CliRunner().invoke(app, list(map(str, arguments)))

    return run


@pytest.fixture(scope="session")
def in_json(qcore: Command) -> Callable[..., Any]:
    """Runs the command with ``--json`` and reads what it says."""

    def run(*arguments: str | Path, status: int = 0) -> Any:
        done = qcore(*arguments, "--json")
        assert done.exit_code == status, done.output
        return json.loads(done.stdout)

    return run


QUANTIZE = ("quantize", "shop:net", "--backend", "xnnpack", "--calibration", "rows.npz")


@pytest.fixture(scope="session")
def program(qcore: Command, folder: Path) -> Path:
    """A program for XNNPACK; the recipe, the page and the node data beside it."""
    beside = ("--save-recipe", "net.toml", "--report", "net.html", "--node-data", "nodes.json")
    done = qcore(*QUANTIZE, "--data", "shop:samples", "-o", "net.pte", *beside, "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    return folder / "net.pte"
