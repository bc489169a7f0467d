"""``qcore run``, ``qcore verify`` and ``qcore bench``: commands on programs in files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore.report import dump
from qcore_analysis.commands.answers import Verified
from qcore_analysis.commands.options import Batch, Data, Pictures, load_torch, read
from qcore_analysis.errors import InputError

if TYPE_CHECKING:
    from qcore import LoweredProgram

__all__ = ["bench", "run", "verify"]

Program = Annotated[Path, typer.Argument(help="A program's file, as qcore quantize writes it.")]
Input = Annotated[str, typer.Option("--input", "-i", help="Data, as for --calibration.")]


def run(
    program: Program,
    inputs: Input,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .npz file for what comes out.")
    ] = None,
    batch: Batch = 1,
    pictures: Pictures = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a program on data."""
    load_torch(quiet)
    from torch.utils._pytree import tree_leaves

    from qcore.cli.progress import step
    from qcore_analysis.samples import executed, load_data

    loaded = _loaded(program)
    samples = load_data(inputs, batch=batch, pictures=pictures)
    with step("executing", quiet) as over:
        outputs = executed(loaded, samples, over)
    flat = [tree_leaves(one) for one in outputs]
    if output is not None:
        _write(output, flat)
    lines = [
        f"sample {index}: " + ", ".join(f"{tuple(t.shape)} {_ends(t)}" for t in tensors)
        for index, tensors in enumerate(flat)
    ]
    data = {"outputs": [[tensor.tolist() for tensor in tensors] for tensors in flat]}
    answer("\n".join(lines), data if output is None else {"output": str(output)}, as_json, quiet)


def verify(
    program: Program,
    against: Annotated[str, typer.Option(help="The float model: .pt2 or package.module:factory.")],
    data: Data,
    min_sqnr: Annotated[float, typer.Option(help="The least SQNR in decibels.")],
    batch: Batch = 1,
    pictures: Pictures = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare a program with its float model; exit status 1 where it is too far away."""
    load_torch(quiet)
    import torch

    from qcore.cli.progress import step
    from qcore_analysis.measures import distance_of
    from qcore_analysis.samples import called, executed, taken_by_the_model

    loaded = _loaded(program)
    model, (samples,) = read(against, data, batch=batch, pictures=pictures, quiet=quiet)
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    expected = []
    with step("running the float model", quiet) as over:
        for index, sample in enumerate(over(samples)):
            with torch.no_grad(), taken_by_the_model(index):
                expected.append(called(module, sample))
    with step("executing", quiet) as over:
        found = distance_of(expected, executed(loaded, samples, over))
    ok = found.sqnr_db >= min_sqnr
    top1 = "" if found.top1 is None else f", top-1 agreement {found.top1:.3f}"
    text = (
        f"{'ok' if ok else 'TOO FAR'}: {found.sqnr_db:.1f} dB on {len(samples)} samples, "
        f"{min_sqnr:g} asked for; largest difference {found.largest:.3g}{top1}"
    )
    if not ok:
        text += f"\nqcore compare {against} says where it is lost."
    count = len(samples)
    figures = Verified(found.sqnr_db, found.cosine, found.largest, found.top1, count, min_sqnr, ok)
    answer(text, dump(figures), as_json, quiet)
    raise typer.Exit(0 if ok else 1)


def bench(
    program: Program,
    inputs: Annotated[str, typer.Option("--input", "-i", help="Data; by default random.")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before them.")] = 3,
    batch: Batch = 1,
    pictures: Pictures = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time a program inside the process that runs it."""
    load_torch(quiet)
    from qcore.cli.progress import step
    from qcore_analysis.samples import called, load_data

    loaded = _loaded(program)
    sample = load_data(inputs, batch=batch, pictures=pictures)[0] if inputs else _random(loaded)
    with step(f"{warmup + runs} runs", quiet, of=str(program.resolve())):
        latency = called(partial(loaded.benchmark, runs=runs, warmup=warmup), sample)
    answer(f"{loaded.backend}: {latency}", dump(latency), as_json, quiet)


def _loaded(path: Path) -> LoweredProgram:
    from qcore import LoweredProgram

    if path.suffix == ".qpt2" and path.exists():
        raise InputError(
            f"{path} is a quantized model and no program yet: qcore quantize {path} "
            f"-o {path.with_suffix('.pte')} makes one of it."
        )
    return LoweredProgram.load(path)


def _ends(tensor: Any) -> str:
    values = [f"{value:.4g}" for value in tensor.reshape(-1)[:4].tolist()]
    return f"[{', '.join(values)}{', ...' if tensor.numel() > 4 else ''}]"


def _write(path: Path, outputs: list[list[Any]]) -> None:
    import io

    import numpy

    from qcore.files import write_whole

    file = io.BytesIO()
    arrays = {
        f"sample{index}_output{position}": tensor.numpy()
        for index, tensors in enumerate(outputs)
        for position, tensor in enumerate(tensors)
    }
    numpy.savez(file, **arrays)
    write_whole(path, file.getvalue(), "the outputs", "outputs.npz", InputError)


def _random(program: Any) -> tuple[Any, ...]:
    import torch

    if program.inputs is None:
        raise InputError("The file does not say what it takes. Pass --input DATA.")
    return tuple(
        spec.value if spec.is_number else torch.rand(spec.shape).to(spec.dtype)
        for spec in program.inputs
    )
