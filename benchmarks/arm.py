"""qcore against ExecuTorch's own Arm quantizers on EfficientNet-Lite0, for VGF and Ethos-U.

Run it with ``make bench-arm``: the same model and crops, each side in a process of its own, in one
run. Both converted models are lowered by qcore to be executed, so that the quantizers are compared;
the time to lower is that of each side's own way.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
SIDES = ("executorch", "qcore")
#: Name of the case: backend, options of its quantizer, scheme.
CASES: dict[str, tuple[str, dict[str, str], str]] = {
    "vgf 8a8w": ("vgf", {}, "8a8w"),
    "ethos-u55-128 8a8w": ("ethosu", {"target": "ethos-u55-128"}, "8a8w"),
    "ethos-u85-256 8a8w": ("ethosu", {"target": "ethos-u85-256"}, "8a8w"),
    "ethos-u85-256 16a8w": ("ethosu", {"target": "ethos-u85-256"}, "16a8w"),
}
CROPS = 32
LAYERS = (100, 400, 1600)


class Clock:
    """Seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float | None] = {}

    def run(self, stage: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function and keep how long it took."""
        start = time.perf_counter()
        result = function(*args)
        self.seconds[f"{stage}, s"] = time.perf_counter() - start
        return result


def their_quantizer(backend: str, options: dict[str, str], scheme: str) -> Any:
    """Build ExecuTorch's quantizer for a case."""
    from executorch.backends.arm import quantizer as arm
    from executorch.backends.arm.ethosu import EthosUCompileSpec
    from executorch.backends.arm.vgf import VgfCompileSpec

    if backend == "vgf":
        quantizer = arm.VgfQuantizer(VgfCompileSpec())
    else:
        quantizer = arm.EthosUQuantizer(EthosUCompileSpec(options["target"]))
    config = {
        "8a8w": arm.get_symmetric_quantization_config,
        "16a8w": arm.get_symmetric_a16w8_quantization_config,
    }[scheme]
    return quantizer.set_global(config(is_per_channel=True))


def quantized(side: str, quantizer: Any, model: Any, samples: list[Any], clock: Clock) -> Any:
    """Quantize on one side."""
    if side == "qcore":
        import qcore

        result = qcore.quantize(model, quantizer, samples, progress=False)
        clock.seconds.update({f"{k}, s": v for k, v in result.seconds.items()})
        return result.model
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = clock.run(
        "capture", lambda: torch.export.export(model, (samples[0],)).module(check_guards=False)
    )
    prepared = clock.run("prepare", prepare_pt2e, graph, quantizer)
    clock.run("calibrate", calibrate, prepared, samples)
    return clock.run("convert", convert_pt2e, prepared)


def calibrate(prepared: Any, samples: list[Any]) -> None:
    """Run the samples as ``qcore.quantize`` does, without autograd."""
    import torch

    with torch.no_grad():
        for sample in samples:
            prepared(sample)


def lower_with_executorch(model: Any, quantizer: Any, sample: Any) -> None:
    """Lower as ExecuTorch's documentation does."""
    import torch
    from executorch.backends.arm.util._factory import create_partitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        torch.export.export(model, (sample,)),
        partitioner=[create_partitioner(quantizer.compile_spec)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    edge.to_executorch()


def figures(side: str, case: str, pictures: int) -> dict[str, Any]:
    """Measure one side of one case."""
    import torch

    import imagenet
    import qcore

    backend, options, scheme = CASES[case]
    ours = qcore.get_quantizer(backend, **options).set_global(scheme)
    quantizer = ours if side == "qcore" else their_quantizer(backend, options, scheme)
    model = imagenet.float_model()
    crops = imagenet.evaluation_crops(CROPS)
    expected = imagenet.logits(model, crops)
    clock = Clock()
    converted = quantized(side, quantizer, model, imagenet.calibration_crops(CROPS), clock)
    with torch.no_grad():
        simulated = imagenet.logits(converted, crops)
    if side == "executorch":
        try:
            clock.run("lower", lower_with_executorch, converted, quantizer, crops[0])
        except Exception as error:
            clock.seconds["lower, s"] = None  # It stops.
            print(f"{case}: ExecuTorch does not lower its own model: {error}", file=sys.stderr)
        peak = peak_memory_mib()
        program = ours.lower(converted, crops[0])
    else:
        program = clock.run("lower", ours.lower, converted, crops[0])
        peak = peak_memory_mib()
    outputs = torch.cat(list(program.run_many([(crop,) for crop in crops[:pictures]])))
    report = program.report
    result = {
        "SQNR to float, converted, dB": imagenet.sqnr_db(expected, simulated),
        "top-1 agreement, converted": imagenet.top1_agreement(expected, simulated),
        f"SQNR to float, executed ({pictures}), dB": imagenet.sqnr_db(expected[:pictures], outputs),
        f"SQNR to converted, executed ({pictures}), dB": imagenet.sqnr_db(
            simulated[:pictures], outputs
        ),
        **clock.seconds,
        "peak memory, MiB": peak,
        "size of the .pte, MB": len(program.buffer) / 1e6,
        "delegates": report.delegates,
        "compute nodes not delegated": len(report.undelegated),
    }
    if backend == "ethosu":
        result |= {
            "operators on the CPU": report.cpu_operators,
            "SRAM, KiB": report.sram_bytes / 1024,
            "flash, KiB": report.flash_bytes / 1024,
            "cycles, M": report.total_cycles / 1e6,
        }
    return result


def peak_memory_mib() -> float:
    """Return the most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def layer_figures(side: str) -> dict[str, float]:
    """Time the preparation of chains of linear and ReLU."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    import qcore
    from qcore.pt2e import PreparedModel

    clock = Clock()
    for count in LAYERS:
        layers = [m for _ in range(count) for m in (torch.nn.Linear(8, 8), torch.nn.ReLU())]
        exported = torch.export.export(torch.nn.Sequential(*layers), (torch.rand(1, 8),))
        graph = exported.module(check_guards=False)
        stage = f"prepare, {count} layers"
        if side == "qcore":
            quantizer = qcore.get_quantizer("vgf").set_global("8a8w")
            clock.run(stage, PreparedModel.prepare, graph, quantizer, False)
        else:
            clock.run(stage, prepare_pt2e, graph, their_quantizer("vgf", {}, "8a8w"))
    return clock.seconds


def measure(side: str, case: str, pictures: int) -> dict[str, Any]:
    """Measure in a new process."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--side", side, "--case", case]
        command += ["--pictures", str(pictures), "--output", file.name]
        # ExecuTorch looks for Arm's model converter on the PATH.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        env = {**os.environ, "PATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed on {case}:\n{done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(Path(file.name).read_text())
        return result


def table(case: str, results: dict[str, dict[str, Any]]) -> Table:
    """Put both sides beside each other."""
    made = Table("", "ExecuTorch", "qcore", "ratio", title=case)
    for name in results["qcore"]:
        if name not in results["executorch"]:
            continue
        theirs, ours = results["executorch"][name], results["qcore"][name]
        if theirs is None:
            made.add_row(name, "stops", f"{ours:.4g}", "")
            continue
        ratio = "" if "dB" in name or not theirs else f"{ours / theirs:.2f}x"
        difference = f"{ours - theirs:+.1f} dB" if "dB" in name else ratio
        made.add_row(name, f"{theirs:.4g}", f"{ours:.4g}", difference)
    return made


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--case", action="append", choices=[*CASES, "layers"])
    parser.add_argument("--pictures", type=int, default=4, help="how many crops are executed")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "arm.json")
    options = parser.parse_args()
    cases = options.case or [*CASES, "layers"]
    options.output.parent.mkdir(exist_ok=True)
    if options.side:
        (case,) = cases
        found = (
            layer_figures(options.side)
            if case == "layers"
            else figures(options.side, case, options.pictures)
        )
        options.output.write_text(json.dumps(found))
        return
    progress, console = Console(stderr=True, highlight=False), Console()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for case in cases:
        results[case] = {}
        for side in SIDES:
            progress.print(f"{case}: {side} ...", style="dim")
            results[case][side] = measure(side, case, options.pictures)
        console.print(table(case, results[case]))
    options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
