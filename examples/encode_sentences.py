"""Quantize a sentence encoder for a mobile GPU, lower it, and check the program without one.

Run it with ``make demo BACKEND=vulkan``, or ``python examples/encode_sentences.py``. No Vulkan
runtime exists for a host, so the program is verified here and runs on a device.
Progress goes to stderr, the result to stdout.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import qcore
from classify_picture import Progress, print_some
from qcore.quiet import quiet

if TYPE_CHECKING:
    import torch

SENTENCES = 50
SCHEME = "8da4w"
GROUP_SIZE = 32
SIZES = ("bytes_before", "bytes_after")


def demo(layers: int, console: Console, progress: Progress) -> None:
    """Quantize, lower, verify and compare.

    Args:
        layers: How many of the encoder's layers to keep, from the first.
        console: Takes the result.
        progress: Takes what is being done.
    """
    with progress.step("Loading PyTorch, MiniLM and the sentences"):
        # Before transformers: it imports torchao, too, and would not hide what that prints.
        quantizer = qcore.get_quantizer("vulkan")
        with quiet():
            import sentences

            # Attention written out: the fused operator decomposes into steps that Vulkan lacks.
            model, samples = sentences.load(
                SENTENCES, add_pooling_layer=False, attn_implementation="eager"
            )
        del model.model.encoder.layer[layers:]
        exact = encoded(model, samples)
    with progress.step(f"Quantizing the linear layers: {SCHEME}, groups of {GROUP_SIZE}"):
        quantized = copy.deepcopy(model)
        report = qcore.quantize_(quantized, "vulkan", SCHEME, group_size=GROUP_SIZE)
        rounded = encoded(quantized, samples)
    with progress.step("Lowering the quantized model"):
        program: Any = quantizer.lower(quantized, samples[0])
    with progress.step("Verifying the program"):
        found = program.verify(*samples[0])

    console.print("\n[bold]MiniLM, a sentence encoder, for vulkan[/bold]")
    console.print(sizes_table(report, len(program.buffer)))
    cosine = (exact * rounded).sum(1)
    agreeing = int((nearest(exact) == nearest(rounded)).sum())
    console.print(
        f"Cosine similarity to float: {cosine.mean():.3f} on average, {cosine.min():.3f} at worst, "
        f"on {SENTENCES} sentences"
    )
    console.print(f"Same most similar sentence as in float: for {agreeing} of them")
    lowered = program.report
    console.print(
        f"Compute nodes of the program: {len(lowered.delegated)} in {lowered.delegates} delegates, "
        f"{len(lowered.undelegated)} on portable kernels"
    )
    print_some(console, left_out(lowered))
    console.print(str(found), markup=False, soft_wrap=True)
    try:
        program.run(*samples[0])
    except qcore.QcoreError as error:
        console.print(f"Not run: {error}", markup=False, soft_wrap=True)


def encoded(model: Any, samples: Any) -> torch.Tensor:
    """Return what the model makes of each sentence, ``[sentences, 384]``."""
    import torch

    with torch.no_grad():
        return torch.cat([model(*sample) for sample in samples])


def nearest(vectors: torch.Tensor) -> torch.Tensor:
    """Return the index of the most similar other sentence for each."""
    similarity = vectors @ vectors.T
    return similarity.fill_diagonal_(-2).argmax(1)


def sizes_table(report: qcore.SourceReport, program_bytes: int) -> Table:
    """Return the size of the weights before and after, and of the program."""
    table = Table()
    table.add_column("")
    for title in ("linear layers", "all weights", "program"):
        table.add_column(title, justify="right")
    linears = [sum(getattr(layer, name) for layer in report.quantized) for name in SIZES]
    wholes = [report.bytes_before, report.bytes_after]
    programs = ["", megabytes(program_bytes)]
    for title, linear, whole, program in zip(
        ("float", SCHEME), linears, wholes, programs, strict=True
    ):
        table.add_row(title, megabytes(linear), megabytes(whole), program)
    return table


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:.1f} MB"


def left_out(report: Any) -> list[str]:
    """Return a line for each operator and reason outside the delegates, the frequent ones first."""
    counts: dict[str, int] = {}
    for node in report.undelegated:
        line = f"{node.operator}: {node.reason}"
        counts[line] = counts.get(line, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{count} x {line}" for line, count in ordered]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", type=int, default=6, help="of MiniLM's 6; fewer are faster and encode worse"
    )
    layers = parser.parse_args(arguments).layers
    try:
        demo(layers, Console(highlight=False), Progress())
    except qcore.QcoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(
            f'{error}. It needs: pip install "qcore-quant[demo,language-models]"', file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
