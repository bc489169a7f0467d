"""One side of the benchmark, in a process of its own; ``xnnpack.py`` starts it and compares.

Both sides get the same model and the same crops, and follow the documentation of their quantizer.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.graph import is_compute_node
from qcore_executorch.inspection import inspect_lowered

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import imagenet

CROPS = 32
LAYERS = (100, 400, 1600)
WARM_UP = 10
WIDTH = 16
Seconds = dict[str, float]


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Put the time that the context takes into a table."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def with_executorch(
    model: torch.nn.Module, samples: list[torch.Tensor], seconds: Seconds
) -> tuple[torch.nn.Module, bytes, dict[str, Any]]:
    """Quantize and lower with ExecuTorch's quantizer; return the model, the program, the facts."""
    inputs = (samples[0],)
    with timed(seconds, "capture"):
        exported = torch.export.export(model, inputs).module()
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    with timed(seconds, "prepare"):
        prepared = prepare_pt2e(exported, quantizer)
    float_nodes = sum(is_compute_node(n) and not is_annotated(n) for n in prepared.graph.nodes)
    with timed(seconds, "calibrate"), torch.no_grad():
        for sample in samples:
            prepared(sample)
    with timed(seconds, "convert"):
        converted = convert_pt2e(prepared)
    with timed(seconds, "lower"):
        edge = to_edge_transform_and_lower(
            torch.export.export(converted, inputs), partitioner=[XnnpackPartitioner()]
        )
        buffer = bytes(edge.to_executorch().buffer)
    facts: dict[str, Any] = {"peak_memory_mb": peak_memory_mb()}
    found = inspect_lowered(edge.exported_program().graph_module, {})
    facts["float_nodes"] = float_nodes
    facts["delegates"] = found.delegates
    facts["undelegated_nodes"] = len(found.undelegated)
    facts["stray_nodes"] = len(found.stray)
    return converted, buffer, facts


def is_annotated(node: torch.fx.Node) -> bool:
    """Say whether a quantizer has annotated a node."""
    return bool(getattr(node.meta.get("quantization_annotation"), "_annotated", False))


def with_qcore(
    model: torch.nn.Module, samples: list[torch.Tensor], seconds: Seconds
) -> tuple[torch.nn.Module, bytes, dict[str, Any]]:
    """Do the same with qcore."""
    quantizer = qcore.get_quantizer("xnnpack")
    quantizer.set_global(qcore.get_symmetric_quantization_config(is_per_channel=True))
    result = qcore.quantize(model, quantizer, samples, progress=False)
    seconds.update(result.seconds)
    with timed(seconds, "lower"):
        program = quantizer.lower(result.model, (samples[0],))
    facts: dict[str, Any] = {"peak_memory_mb": peak_memory_mb()}
    facts["float_nodes"] = len(result.report.in_float)
    facts["delegates"] = program.report.delegates
    facts["undelegated_nodes"] = len(program.report.undelegated)
    facts["stray_nodes"] = len(program.report.stray)
    return result.model, program.buffer, facts


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_model(side: str, folder: Path) -> dict[str, Any]:
    """Quantize the model; leave the program and both models' scores in the folder."""
    seconds: Seconds = {}
    model = imagenet.float_model()
    samples = imagenet.calibration_crops(CROPS)
    flow = with_qcore if side == "qcore" else with_executorch
    converted, buffer, facts = flow(model, samples, seconds)
    (folder / "model.pte").write_bytes(buffer)
    crops = imagenet.evaluation_crops(CROPS)
    scores = {
        "float": imagenet.logits(model, crops),
        "converted": imagenet.logits(converted, crops),
    }
    torch.save(scores, folder / "scores.pt")
    return {**facts, "pte_mb": len(buffer) / 1e6, "seconds": seconds}


def measure_layers(side: str) -> dict[str, Any]:
    """Time annotation and preparation of ever longer chains of linear and relu."""
    measured: dict[str, Any] = {}
    for count in (WARM_UP, *LAYERS):
        layers = [m for _ in range(count) for m in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())]
        model, inputs = torch.nn.Sequential(*layers).eval(), (torch.randn(1, WIDTH),)
        graph = torch.export.export(model, inputs).module()
        other = copy.deepcopy(graph)
        quantizer = chain_quantizer(side)
        seconds: Seconds = {}
        with timed(seconds, "annotate"):
            quantizer.annotate(quantizer.transform_for_annotation(other))
        with timed(seconds, "prepare"):
            prepare_pt2e(graph, chain_quantizer(side))
        measured[str(count)] = seconds
    del measured[str(WARM_UP)]  # the first use of an operator costs seconds, once
    return measured


def chain_quantizer(side: str) -> Any:
    """Return one side's quantizer, set to per channel."""
    if side == "qcore":
        config = qcore.get_symmetric_quantization_config(is_per_channel=True)
        return qcore.get_quantizer("xnnpack").set_global(config)
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def main() -> None:
    """Measure what the command line says; write ``result.json`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["executorch", "qcore"])
    parser.add_argument("what", choices=["model", "layers"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "model":
        result = measure_model(args.side, args.folder)
    else:
        result = measure_layers(args.side)
    (args.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
