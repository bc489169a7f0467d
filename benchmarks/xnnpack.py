"""qcore against ExecuTorch's own XNNPACK quantizer: same model, same data, same machine, one run.

Run it with ``make bench``. Each side is measured in processes of its own, in turns, and the
shortest time of each stage counts: what else the machine does only ever adds to it. Then the two
programs run in turns, and everything is put side by side as a table and as JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# torch is imported below, once the sides are done: a child's peak memory starts at its parent's.
HERE = Path(__file__).parent
SIDES = ("executorch", "qcore")
DEFAULT_OUTPUT = HERE / "results" / "xnnpack.json"
PACKAGES = ("torch", "torchao", "executorch", "qcore-quant", "qcore-xnnpack")
ROUNDS = 30
RUNS_A_ROUND = 20
REPEATS = 3
WARM_UP_RUNS = 20

Results = dict[str, dict[str, Any]]


def run_side(side: str, what: str, folder: Path) -> dict[str, Any]:
    """Measure one side in a new process.

    Args:
        side: ``"executorch"`` or ``"qcore"``.
        what: ``"model"`` or ``"layers"``.
        folder: Takes what it leaves.
    """
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "xnnpack_side.py"), side, what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed on {what}:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def shortest(seconds: list[dict[str, float]]) -> dict[str, float]:
    """Return the shortest time of each stage over several runs."""
    return {stage: min(run[stage] for run in seconds) for stage in seconds[0]}


def measure(folders: dict[str, Path], repeats: int, progress: Console) -> tuple[Results, Results]:
    """Measure both sides in turns and return the results for the model and for the chains.

    Args:
        folders: Take what each side leaves.
        repeats: How often each is measured.
        progress: Takes what is being done.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    chains: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(1, repeats + 1):
        for side, folder in folders.items():
            progress.print(f"{side}, run {number} of {repeats}: the model ...", style="dim")
            runs[side].append(run_side(side, "model", folder))
            progress.print(f"{side}, run {number} of {repeats}: long chains ...", style="dim")
            chains[side].append(run_side(side, "layers", folder))
    results, layers = {}, {}
    for side in SIDES:
        every = [run["seconds"] for run in runs[side]]
        memory = statistics.median(run["peak_memory_mb"] for run in runs[side])
        results[side] = {
            **runs[side][-1],
            "peak_memory_mb": memory,
            "seconds": shortest(every),
            "seconds_of_each_run": every,
        }
        counts = chains[side][0]
        layers[side] = {count: shortest([run[count] for run in chains[side]]) for count in counts}
    return results, layers


def compare_programs(folders: dict[str, Path], results: Results) -> dict[str, Any]:
    """Run both programs; add accuracy to the results and return the latencies.

    Args:
        folders: What each side left.
        results: The results of each side.
    """
    sys.path.insert(0, str(HERE.parent / "examples"))
    import torch

    import imagenet
    from qcore.lowering import LoweredProgram

    crops, runner = imagenet.evaluation_crops(), host_runner()
    for side, folder in folders.items():
        scores = torch.load(folder / "scores.pt", weights_only=True)
        program = LoweredProgram.load(folder / "model.pte", backend="xnnpack", runner=runner)
        pte = torch.cat(program.run_many(crops))
        results[side] |= {
            "sqnr_converted_db": imagenet.sqnr_db(scores["float"], scores["converted"]),
            "sqnr_pte_db": imagenet.sqnr_db(scores["float"], pte),
            "sqnr_pte_to_converted_db": imagenet.sqnr_db(scores["converted"], pte),
            "top1_agreement_converted": imagenet.top1_agreement(
                scores["float"], scores["converted"]
            ),
            "top1_agreement_pte": imagenet.top1_agreement(scores["float"], pte),
        }
    programs = {side: (folder / "model.pte").read_bytes() for side, folder in folders.items()}
    return alternating_latency(runner, programs, crops[0])


def host_runner() -> Any:
    """Return what executes the programs of both sides."""
    from qcore_executorch import ExecuTorchRunner

    return ExecuTorchRunner(backends=("XnnpackBackend",), modules=("executorch.kernels.quantized",))


def alternating_latency(runner: Any, programs: dict[str, bytes], sample: Any) -> dict[str, Any]:
    """Time the programs in turns, so that both meet the same noise.

    Args:
        runner: Executes them.
        programs: The bytes of each side's program.
        sample: The input.

    Returns:
        The median of each side in milliseconds, and the median of the rounds' ratios.
    """
    times: dict[str, list[float]] = {side: [] for side in programs}
    with ExitStack() as stack:
        sessions = {s: stack.enter_context(runner.session(p)) for s, p in programs.items()}
        for session in sessions.values():
            session.benchmark([sample], warmup=0, runs=WARM_UP_RUNS)
        for _ in range(ROUNDS):
            for side, session in sessions.items():
                latency = session.benchmark([sample], warmup=1, runs=RUNS_A_ROUND)
                times[side].append(latency.median_ms)
    theirs, ours = (times[side] for side in SIDES)
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    medians = {f"{side}_ms": statistics.median(times[side]) for side in SIDES}
    return {**medians, "ratio": statistics.median(ratios), "rounds": ROUNDS}


def ratio(theirs: float, ours: float) -> str:
    """Return ours as a multiple of theirs."""
    return f"{ours / theirs:.2f}x" if theirs else "-"


def model_table(results: Results, latency: dict[str, Any]) -> Table:
    """Return the table for the model."""
    theirs, ours = (results[side] for side in SIDES)
    table = new_table("EfficientNet-Lite0, int8 static per channel, 32 crops; best times")
    for name, key in (
        ("SQNR to float, converted model", "sqnr_converted_db"),
        ("SQNR to float, .pte", "sqnr_pte_db"),
        ("SQNR of .pte to converted model", "sqnr_pte_to_converted_db"),
    ):
        a, b = theirs[key], ours[key]
        table.add_row(name, f"{a:.1f} dB", f"{b:.1f} dB", f"{b - a:+.1f} dB")
    for name, key in (
        ("top-1 agreement, converted model", "top1_agreement_converted"),
        ("top-1 agreement, .pte", "top1_agreement_pte"),
    ):
        a, b = theirs[key], ours[key]
        table.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")
    table.add_section()
    stages = list(dict.fromkeys([*theirs["seconds"], *ours["seconds"]]))
    stages.sort(key=lambda stage: stage == "lower")
    for stage in stages:
        a, b = (side["seconds"].get(stage, 0.0) for side in (theirs, ours))
        table.add_row(stage, f"{a:.2f} s", f"{b:.2f} s", ratio(a, b))
    a, b = (sum(side["seconds"].values()) for side in (theirs, ours))
    table.add_row("all stages", f"{a:.2f} s", f"{b:.2f} s", ratio(a, b))
    a, b = theirs["peak_memory_mb"], ours["peak_memory_mb"]
    table.add_row("peak memory", f"{a:.0f} MiB", f"{b:.0f} MiB", ratio(a, b))
    table.add_section()
    a, b = theirs["pte_mb"], ours["pte_mb"]
    table.add_row("size of the .pte", f"{a:.3f} MB", f"{b:.3f} MB", ratio(a, b))
    for name, key in (
        ("delegates", "delegates"),
        ("compute nodes left in float", "float_nodes"),
        ("compute nodes not delegated", "undelegated_nodes"),
        ("(de)quantize nodes not delegated", "stray_nodes"),
    ):
        table.add_row(name, str(theirs[key]), str(ours[key]), "")
    a, b = (latency[f"{side}_ms"] for side in SIDES)
    table.add_row("latency of the .pte", f"{a:.2f} ms", f"{b:.2f} ms", f"{latency['ratio']:.2f}x")
    return table


def layers_table(layers: Results) -> Table:
    """Return the table for the chains of linear and relu."""
    theirs, ours = (layers[side] for side in SIDES)
    table = new_table("Chains of linear + relu; best times")
    for stage in ("annotate", "prepare"):
        for count in theirs:
            a, b = theirs[count][stage], ours[count][stage]
            table.add_row(f"{stage}, {count} layers", f"{a:.3f} s", f"{b:.3f} s", ratio(a, b))
    return table


def new_table(title: str) -> Table:
    """Return an empty table with a column for each side."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("ExecuTorch", "qcore", "ratio"):
        table.add_column(column, justify="right")
    return table


def environment() -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each side")
    args = parser.parse_args()
    output: Path = args.output
    progress = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as name:
        folders = {side: Path(name) / side for side in SIDES}
        results, layers = measure(folders, max(1, args.repeats), progress)
        progress.print("Running both programs in turns ...", style="dim")
        latency = compare_programs(folders, results)
    console = Console(highlight=False)
    console.print(model_table(results, latency))
    console.print(layers_table(layers))
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment(),
        "model": results,
        "latency": latency,
        "layers": layers,
    }
    output.write_text(json.dumps(document, indent=2) + "\n")
    progress.print(f"Written to {output}", style="dim")


if __name__ == "__main__":
    main()
