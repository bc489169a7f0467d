"""Handwritten digits: float, quantized after training, and trained with fake quantization.

A residual network and one of inverted residuals, each trained by a loop as users write it, then
executed as XNNPACK's, VGF's and Ethos-U's programs.

    python benchmarks/qat.py [--backends xnnpack,vgf,ethosu]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

import qcore

BATCH: Final = 60
TRAINED: Final = 1200
OPTIONS: Final[dict[str, dict[str, Any]]] = {"ethosu": {"target": "ethos-u85-256"}}
RESULTS: Final = Path(__file__).parent / "results" / "qat.json"

Data = list[tuple[torch.Tensor, torch.Tensor]]


class Residual(nn.Module):  # type: ignore[misc]
    """Two convolutions with batch norms around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(x + self.second_norm(self.second(y)))


class Inverted(nn.Module):  # type: ignore[misc]
    """MobileNetV2's block: expand, convolve each channel by itself, project."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU6(),
            nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU6(),
            nn.Conv2d(expanded, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        out: torch.Tensor = x + self.layers(x)
        return out


def _network(*blocks: nn.Module) -> nn.Module:
    stem = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(*stem, *blocks, *head)


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "residual": lambda: _network(Residual(8), Residual(8)),
    "MobileNet": lambda: _network(Inverted(8, 24), Inverted(8, 24), Inverted(8, 24)),
}

# Name -> the scheme or configuration; 4-bit weights are stored as int8, and need training.
SCHEMES: Final[dict[str, Any]] = {
    "8a8w": "8a8w",
    "8a8w, 4-bit weights": qcore.get_symmetric_quantization_config(
        True, weight_qmin=-7, weight_qmax=7
    ),
}


def digits() -> tuple[Data, Data]:
    """Return batches to train with and others to test with."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(images, dtype=torch.float32)[order] / 8 - 1).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)[order]
    batches = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x) - BATCH, BATCH)]
    return batches[: TRAINED // BATCH], batches[TRAINED // BATCH :]


def train(model: nn.Module, data: Data, epochs: int, rate: float) -> None:
    """Train as users do."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for images, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def accuracy(outputs: Iterator[torch.Tensor], data: Data) -> float:
    """Return the share of images whose class is right."""
    right = sum(
        int((output.argmax(1) == labels).sum())
        for output, (_, labels) in zip(outputs, data, strict=True)
    )
    return right / (BATCH * len(data))


def trained_with_fake_quantization(model: nn.Module, quantizer: Any, data: Data) -> Any:
    """Take torchao's flow with a loop of one's own."""
    graph = torch.export.export(model.train(), (data[0][0],)).module()
    prepared = prepare_qat_pt2e(graph, quantizer)
    train(prepared, data, epochs=3, rate=1e-3)
    move_exported_model_to_eval(prepared)
    return convert_pt2e(prepared)


def measure(backend: str, network: str, scheme: str) -> dict[str, Any]:
    """Return the accuracies of one network on one backend."""
    torch.manual_seed(0)
    training, testing = digits()
    model = NETWORKS[network]()
    train(model.train(), training, epochs=12, rate=1e-2)
    model.eval()
    samples = [(images,) for images, _ in training]

    def quantizer() -> Any:
        return qcore.get_quantizer(backend, **OPTIONS.get(backend, {})).set_global(SCHEMES[scheme])

    def executed(converted: Any) -> float:
        program = quantizer().lower(converted, samples[0])
        return accuracy(iter(program.run_many([(x,) for x, _ in testing])), testing)

    row: dict[str, Any] = {"backend": backend, "network": network, "scheme": scheme}
    with torch.no_grad():
        row["float"] = accuracy((model(x) for x, _ in testing), testing)
    after = qcore.quantize(model, quantizer(), samples).model
    row["PTQ"] = executed(after)
    fake = qcore.quantize(model, quantizer(), samples, is_qat=True).model
    row["is_qat, nobody trains"] = executed(fake)
    converted = trained_with_fake_quantization(model, quantizer(), training)
    row["QAT"] = executed(converted)
    return row


def main() -> None:
    """Measure every network on every backend, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="xnnpack,vgf,ethosu")
    chosen = parser.parse_args().backends.split(",")
    rows = [measure(b, n, s) for b in chosen for n in NETWORKS for s in SCHEMES]
    table = Table(title=f"Digits, {BATCH * len(digits()[1])} that training has not seen; executed")
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()))
    Console(width=120).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
