"""A real language model in 4 bits: qcore beside ExecuTorch's ``export_llm`` and llama.cpp.

Each side makes its file from the same GGUF file by its own commands; then all of them read the same
text, round by round, each in a process of its own. Every quantizer meets the model twice: as its
file has it, whose weights lie on a 4-bit grid already, and with each norm's weight folded into the
layers behind it: the same function, but weights off that grid. Further sections measure what qcore
alone does. Run ``make bench-llm``; it takes an hour and a half, and 15 minutes more the first time,
when llama.cpp is compiled. What was made stays in ``build/bench-llm``, and is not made again;
``python benchmarks/language_models.py --only lower text`` takes some of the sections. Speeds want a
machine that does nothing else; the others count CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from language_model_files import (
    BUILD,
    EVALUATED,
    LLAMA_CPP,
    QCORE,
    SIDES,
    VARIANTS,
    Figures,
    made,
    models,
    source,
)
from language_model_side import DECODE, PREFILL
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

ALGORITHMS: Final = ("round", "hqq", "mse", "gptq")
LAYERS: Final = (15, 30)


class Side:
    """A process that reads with one side's file, until the context ends."""

    def __init__(self, kind: str, path: Path, tokens: Path, threads: int) -> None:
        python = LLAMA_CPP if kind == "llama.cpp" else sys.executable
        worker = Path(__file__).with_name("language_model_side.py")
        # Make sets it for a busy machine; llama.cpp's threads decode four times slower with it.
        env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        self._child = subprocess.Popen(
            [python, worker, kind, path, tokens, "--threads", str(threads)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def ask(self, what: str) -> Any:
        """Return the answer to one request."""
        to: IO[str] = self._child.stdin  # type: ignore[assignment]
        to.write(json.dumps(what) + "\n")
        to.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._child.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"{self._child.args} ended with {self._child.wait()}")
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()


def read_text() -> Path:
    """Write the token numbers of the text that is measured; return their file."""
    from qcore_llm import load_model
    from qcore_llm.text import documentation, token_numbers

    BUILD.mkdir(parents=True, exist_ok=True)
    _, tokenizer = load_model(source())
    path = BUILD / "tokens.json"
    path.write_text(json.dumps(token_numbers(tokenizer, documentation())[:EVALUATED].tolist()))
    return path


def perplexity(options: argparse.Namespace, console: Console) -> Figures:
    """Measure how well each side's file reads, and print it with what making it took."""
    tokens = read_text()
    rows: Figures = {}
    for name in options.sides:
        for variant in VARIANTS:
            path, figures = made(name, variant, console)
            with Side(SIDES[name][2], path, tokens, options.threads) as side:
                found = side.ask("perplexity")
            rows.setdefault(name, dict(figures))[variant] = found
            console.print(f"{name}, {variant}: {found:.2f}")
    show(
        f"Perplexity of {EVALUATED} tokens, executed one by one",
        ("", *VARIANTS, "size", "made in", "peak", "parts"),
        [
            (
                name,
                *(f"{row[variant]:.2f}" for variant in VARIANTS),
                f"{row['bytes'] / 1e6:.0f} MB",
                f"{row['cpu_s']:.0f} s CPU" if "cpu_s" in row else "",
                f"{row['peak_mb']:.0f} MB" if "peak_mb" in row else "",
                f"{row['delegates']} + {row['outside']}" if "delegates" in row else "",
            )
            for name, row in rows.items()
        ],
    )
    return rows


def speed(options: argparse.Namespace, console: Console) -> Figures:
    """Measure how fast each side reads, in alternation; medians, with qcore's as a multiple."""
    tokens = read_text()
    rounds: dict[str, list[Figures]] = {name: [] for name in options.sides}
    with ExitStack() as stack:
        sides = {}
        for name in options.sides:
            path, _ = made(name, VARIANTS[0], console)
            side = Side(SIDES[name][2], path, tokens, options.threads)
            sides[name] = stack.enter_context(side)
        for _ in tqdm(range(options.rounds), "rounds", disable=None):
            for name, side in sides.items():
                rounds[name].append(side.ask("speed"))

    def median(name: str, what: str) -> float:
        return statistics.median(found[what] for found in rounds[name])

    def cell(name: str, what: str) -> str:
        found = f"{median(name, what):.0f}/s"
        if name == QCORE or QCORE not in rounds:
            return found
        return f"{found} ({median(QCORE, what) / median(name, what):.2f})"

    show(
        f"{PREFILL} tokens read at once, {DECODE} one by one, {options.threads} threads",
        ("", "prefill", "decode"),
        [(name, cell(name, "prefill"), cell(name, "decode")) for name in rounds],
    )
    return dict(rounds)


def ours(what: str, options: argparse.Namespace, variant: str, *more: str | Path) -> Figures:
    """Return figures about qcore's side, measured in a process of its own."""
    worker = Path(__file__).with_name("language_model_figures.py")
    threads = ("--threads", str(options.threads))
    command = [sys.executable, worker, what, models()[variant], *threads, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what}: {done.stderr}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def kept(variant: str) -> tuple[str, Path]:
    """Return the option that takes up what GPTQ chose when qcore's program was made."""
    return "--resume", BUILD / variant.replace(" ", "-") / "gptq"


def algorithms(options: argparse.Namespace, console: Console) -> Figures:
    """Measure how well the quantized model reads in eager, by what chose its weights."""
    rows = {}
    for name in ALGORITHMS:
        for variant in VARIANTS:
            console.print(f"{name}: {variant}")
            more = ("--algorithm", name, *kept(variant))
            found = ours("algorithm", options, variant, *more)
            rows.setdefault(name, {})[variant] = found["perplexity"]
    show(
        f"Perplexity of {EVALUATED} tokens in eager, 8da4w, embedding and head 8 bit",
        ("", *VARIANTS),
        [(name, *(f"{row[variant]:.2f}" for variant in VARIANTS)) for name, row in rows.items()],
    )
    return rows


def gptq(options: argparse.Namespace, console: Console) -> Figures:
    """Measure GPTQ of all layers."""
    console.print("GPTQ, nothing resumed")
    found = ours("gptq", options, VARIANTS[0])
    show(
        f"GPTQ of {found['layers']} layers, {options.threads} threads",
        ("CPU", "wall", "resident before", "peak", "allocated", "a block and its statistics"),
        [
            (
                f"{found['cpu_s']:.0f} s",
                f"{found['wall_s']:.0f} s",
                f"{found['before_mb']:.0f} MB",
                f"{found['peak_mb']:.0f} MB",
                f"+{found['grown_mb']:.0f} MB",
                f"{found['block_mb'] + found['statistics_mb']:.0f} MB",
            )
        ],
    )
    return found


def lower(options: argparse.Namespace, console: Console) -> Figures:
    """Measure lowering, and how it grows with the layers."""
    rows = {}
    for layers in LAYERS:
        console.print(f"lowering {layers} layers")
        rows[layers] = ours("lower", options, VARIANTS[0], "--layers", str(layers))
    less, more = (rows[layers]["cpu_s"] for layers in LAYERS)
    show(
        f"Lowering: {LAYERS[1]} layers take {more / less:.2f} times as long as {LAYERS[0]}",
        ("layers", "CPU", "peak", "delegates", "a layer", "operators outside"),
        [
            (
                str(layers),
                f"{row['cpu_s']:.0f} s",
                f"{row['peak_mb']:.0f} MB",
                str(row["delegates"]),
                f"{row['delegates'] / layers:.2f}",
                str(row["outside"]),
            )
            for layers, row in rows.items()
        ],
    )
    return {str(layers): row for layers, row in rows.items()}


def text(options: argparse.Namespace, console: Console) -> Figures:
    """Compare what the program writes with its quantized model in eager, and its size with it."""
    program, figures = made(QCORE, VARIANTS[0], console)
    console.print("writing, and scoring in eager")
    found = ours("text", options, VARIANTS[0], "--program", program, *kept(VARIANTS[0]))
    packed, head = found.pop("packed_bytes"), found.pop("head_bytes")
    show(
        "First choices of two ways to compute the same",
        ("", "alike", "others behind, logits", "distance of all logits"),
        [
            (
                name,
                f"{row['alike']} of {row['tokens']}",
                f"{row['behind']:.2f}",
                f"{row['distance']:.1%}",
            )
            for name, row in found.items()
        ],
    )
    size = figures["bytes"]
    show(
        "Size of the program",
        ("file", "weights, the head once", "times", "weights, the head twice", "times"),
        [
            (
                f"{size / 1e6:.1f} MB",
                f"{packed / 1e6:.1f} MB",
                f"{size / packed:.3f}",
                f"{(packed + head) / 1e6:.1f} MB",
                f"{size / (packed + head):.3f}",
            )
        ],
    )
    return found | {"bytes": size, "packed_bytes": packed, "head_bytes": head}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    result = Table(*columns, title=title)
    for row in rows:
        result.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(result)


SECTIONS: Final[dict[str, Callable[[argparse.Namespace, Console], Figures]]] = {
    "perplexity": perplexity,
    "algorithms": algorithms,
    "gptq": gptq,
    "lower": lower,
    "text": text,
    "speed": speed,
}


def main() -> None:
    """Make what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="make everything again")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.fresh:
        for variant in VARIANTS:
            shutil.rmtree(BUILD / variant.replace(" ", "-"), ignore_errors=True)
    console = Console(stderr=True)
    found = {name: SECTIONS[name](options, console) for name in options.only}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
