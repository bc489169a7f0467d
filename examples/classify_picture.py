"""Quantize EfficientNet-Lite0, lower it, and let the program say what is in a picture.

Run it with ``make demo``, or ``python examples/classify_picture.py --backend xnnpack``.
Progress goes to stderr, the result to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import qcore
from qcore.errors import LoweringError
from qcore.report import notes

if TYPE_CHECKING:
    import torch

CROPS = 32
# Where a backend is emulated, one picture takes seconds.
SLOW_MS = 300
FEW_CROPS, FEW_RUNS = 8, 3
MOST_NODES_SHOWN = 8
#: What backends have to be told.
OPTIONS = {"ethosu": {"target": "ethos-u85-256"}}
Pairs = list[tuple[str, float]]


class Progress:
    """Says on stderr what is being done: live on a terminal, a line for each step elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show a step while it runs, and how long it took once it is done.

        Args:
            what: The step, in a few words.

        Yields:
            A function that shows how far it is.
        """
        start = time.perf_counter()
        if self._console.is_terminal:
            with self._console.status(f"{what} ...") as status:
                yield lambda detail: status.update(f"{what} ... {detail}")
        else:
            yield lambda detail: None
        self._console.print(f"{what}: {time.perf_counter() - start:.1f} s", style="dim")


def counted(samples: list[torch.Tensor], tell: Callable[[str], None]) -> Iterator[torch.Tensor]:
    """Yield samples and tell how many there have been, and how long the others may take."""
    start = time.perf_counter()
    for done, sample in enumerate(samples):
        left = (time.perf_counter() - start) / max(done, 1) * (len(samples) - done)
        tell(f"sample {done + 1} of {len(samples)}" + f", {left:.0f} s left" * bool(done))
        yield sample


def demo(
    backend: str, console: Console, progress: Progress, options: dict[str, str] | None = None
) -> None:
    """Quantize, lower, run and compare.

    Args:
        backend: Name of an installed backend.
        console: Takes the result.
        progress: Takes what is being done.
        options: Options of the backend; by default those of ``OPTIONS``.
    """
    quantizer = qcore.get_quantizer(backend, **(options or OPTIONS.get(backend, {})))
    quantizer.set_global("8a8w")

    with progress.step("Loading PyTorch, the model and the pictures"):
        import torch

        import imagenet

        model = imagenet.float_model()
        calibration, evaluation = (
            imagenet.calibration_crops(CROPS),
            imagenet.evaluation_crops(CROPS),
        )
        cat = imagenet.to_input(imagenet.picture())
    with progress.step(f"Quantizing to int8 with {CROPS} calibration crops") as tell:
        result = qcore.quantize(model, quantizer, counted(calibration, tell), progress=False)
    with progress.step("Lowering the int8 model"):
        int8 = quantizer.lower(result.model, (cat,))
    with progress.step("Lowering the float model, to compare"):
        fp32 = lowered_float(quantizer, model, cat)
    with progress.step("Timing"):
        first = int8.benchmark(cat, warmup=1, runs=1)
        slow = first.median_ms > SLOW_MS
        warmup, runs = (0, FEW_RUNS) if slow else (3, 20)
        latency = int8.benchmark(cat, warmup=warmup, runs=runs)
        float_latency = fp32.benchmark(cat, warmup=warmup, runs=runs) if fp32 else None
    evaluation = evaluation[:FEW_CROPS] if slow else evaluation
    crops = len(evaluation)
    step = progress.step(f"Running the program on the picture and on {crops} other crops")
    with step as tell, int8.session() as run:
        int8_scores = torch.cat([run(crop) for crop in counted([cat, *evaluation], tell)])
        float_scores = imagenet.logits(model, [cat, *evaluation])

    console.print(f"\n[bold]chelsea.png, classified by EfficientNet-Lite0 on {backend}[/bold]")
    console.print(
        classes_table(imagenet.top5(float_scores[0]), imagenet.top5(int8_scores[0]), backend)
    )
    sqnr = imagenet.sqnr_db(float_scores[1:], int8_scores[1:])
    sqnr_cat = imagenet.sqnr_db(float_scores[:1], int8_scores[:1])
    agreeing = round(crops * imagenet.top1_agreement(float_scores[1:], int8_scores[1:]))
    console.print(
        f"SQNR against float: {sqnr_cat:.1f} dB here, {sqnr:.1f} dB on {crops} other crops"
    )
    console.print(f"Same top class as float: {agreeing} of the {crops} other crops")
    timed = () if latency.emulation else (float_latency, latency)
    console.print(programs_table((fp32, int8), timed))
    if hasattr(int8, "host"):
        console.print(f"Executed on: {int8.host}", markup=False)
    print_nodes(console, result.report, int8.report)


def classes_table(float_top: Pairs, int8_top: Pairs, backend: str) -> Table:
    """Return the likeliest classes of the float model and of the int8 program side by side."""
    table = Table()
    for title in ("float, in PyTorch", f"int8, the .pte on {backend}"):
        table.add_column(title)
        table.add_column("", justify="right")
    for (float_name, float_share), (int8_name, int8_share) in zip(float_top, int8_top, strict=True):
        table.add_row(float_name, f"{float_share:.1%}", int8_name, f"{int8_share:.1%}")
    return table


def lowered_float(quantizer: qcore.Quantizer, model: torch.nn.Module, cat: torch.Tensor) -> Any:
    """Return the program of the float model; None where the backend has no float."""
    import torch

    try:
        return quantizer.lower(torch.export.export(model, (cat,)).module(), (cat,))
    except LoweringError:
        return None


def programs_table(programs: Sequence[Any], latencies: Sequence[Any]) -> Table:
    """Return size and latency of both programs and their ratios; the float one may be missing.

    An emulation has no latencies: what it takes says nothing about a device.
    """
    rows = [
        ("size", [len(program.buffer) / 1e6 if program else None for program in programs], "MB")
    ]
    if latencies:
        times = [latency.median_ms if latency else None for latency in latencies]
        rows.append(("latency, median", times, "ms"))
    table = Table()
    table.add_column("program")
    for title in ("fp32", "int8", "ratio"):
        table.add_column(title, justify="right")
    for name, (before, after), unit in rows:
        if before is None or after is None:
            table.add_row(name, "not on this backend", f"{after:.2f} {unit}", "")
        else:
            row = (f"{before:.2f} {unit}", f"{after:.2f} {unit}", f"{before / after:.1f}x")
            table.add_row(name, *row)
    return table


def print_nodes(console: Console, decisions: qcore.AnnotationReport, lowered: Any) -> None:
    """Say how many nodes were quantized, float and delegated, and why any was not."""
    console.print(
        f"Compute nodes of the model: {len(decisions.quantized)} quantized, "
        f"{len(decisions.in_float)} in float"
    )
    print_some(console, [f"{d.node} ({d.operator}): {d.reason}" for d in decisions.in_float])
    console.print(
        f"Compute nodes of the program: {len(lowered.delegated)} in "
        f"{lowered.delegates} delegate{'s' * (lowered.delegates != 1)}, "
        f"{len(lowered.undelegated)} on portable kernels"
    )
    print_some(console, [str(node) for node in (*lowered.undelegated, *lowered.stray)])
    for note in notes(lowered):
        console.print(note, markup=False)


def print_some(console: Console, lines: list[str]) -> None:
    """Print the first lines and how many more there are."""
    for line in lines[:MOST_NODES_SHOWN]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if len(lines) > MOST_NODES_SHOWN:
        console.print(f"  and {len(lines) - MOST_NODES_SHOWN} more")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="xnnpack", help="an installed backend")
    parser.add_argument("--target", help="the accelerator, for a backend that has several")
    given = parser.parse_args(arguments)
    options = {"target": given.target} if given.target else None
    try:
        demo(given.backend, Console(highlight=False), Progress(), options)
    except qcore.QcoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f'{error}. The demo needs: pip install "qcore-quant[demo]"', file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
