"""EfficientNet-Lite0 on every backend, and what one would take instead on the CPU, in one table.

Calibrated on crops of some pictures, compared on crops of others. What this machine runs itself is
timed in alternation, on one thread each. ``--write`` puts the table into README.md; what it is made
of stays in ``build/backends.json``, from which ``--again`` makes it without measuring.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import sklearn.datasets
import torch

import qcore
from qcore.lowering import Latency
from qcore.testing.support import markdown_table, with_parts, write_pages
from qcore_analysis import BackendReport, compare_backends
from qcore_analysis.backends import BackendRow

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import imagenet

README: Final = Path(__file__).parents[1] / "README.md"
MEASURED: Final = README.parent / "build" / "backends.json"
BACKENDS: Final = ("xnnpack", "vgf", "ethosu", "tosa", "vulkan")
OPTIONS: Final = {"ethosu": {"target": "ethos-u85-256"}}
CALIBRATION_CROPS: Final = 32
#: scikit-learn's wheel has two photographs beside those of scikit-image's.
UNSEEN: Final = (
    *imagenet.PICTURES[1::2],
    *(
        str(Path(sklearn.datasets.__file__).parent / "images" / f"{n}.jpg")
        for n in ("china", "flower")
    ),
)
SAMPLES: Final = 24
ROUNDS, RUNS_A_ROUND = 15, 10
HEADS: Final = (
    "",
    "quantized",
    "delegates",
    "SQNR converted",
    "SQNR executed",
    "top-1 as float",
    "size",
    "one run",
    "executed by",
    "largest loss",
    "took",
)


def calibration() -> list[torch.Tensor]:
    """Return the crops to calibrate on; ``qcore matrix`` can name this and the two below."""
    return imagenet.calibration_crops(CALIBRATION_CROPS, imagenet.PICTURES[::2])


def evaluation(samples: int = SAMPLES) -> list[torch.Tensor]:
    """Return crops of pictures that calibration has not seen."""
    return imagenet.evaluation_crops(samples, UNSEEN)


def top1(outputs: Sequence[torch.Tensor]) -> float:
    """Return the share of those crops for which scores name the class that the model names."""
    wanted = imagenet.logits(imagenet.float_model(), evaluation(len(outputs)))
    return imagenet.top1_agreement(wanted, torch.cat(list(outputs)))


def main() -> int:
    """Make the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default=",".join(BACKENDS), help="names, commas between")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="crops to compare on")
    parser.add_argument("--time-limit", type=float, default=1200, help="seconds for each backend")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    parser.add_argument("--again", action="store_true", help="take what was measured last")
    arguments = parser.parse_args()
    if not arguments.again:
        found = measured(arguments.backends.split(","), arguments.samples, arguments.time_limit)
        MEASURED.parent.mkdir(exist_ok=True)
        MEASURED.write_text(json.dumps(found, indent=2), encoding="utf-8")
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    times = found["times"]
    rows = [cells(row, times) for row in BackendReport.from_dict(found["report"]).rows]
    for name, (cells_before, cells_after) in found["others"].items():
        rows.append([name, *cells_before, f"{times[name]:.1f} ms", *cells_after])
    table = markdown_table(HEADS, rows)
    print(table)
    if not arguments.write:
        return 0
    pages = {README: with_parts(README, {"all backends": f"\n{table}\n"})}
    return write_pages(pages, (), "make backends")


def measured(backends: Sequence[str], samples: int, time_limit: float) -> dict[str, Any]:
    """Measure all, and return it as data: the report, the cells of the others, the times."""
    model = imagenet.float_model()
    seen, unseen = calibration(), evaluation(samples)
    wanted = imagenet.logits(model, unseen)
    report = compare_backends(
        model,
        backends,
        seen,
        unseen,
        options=OPTIONS,
        metric=top1,
        time_limit=time_limit,
        on_row=lambda row: print(*cells(row, {}), sep="  ", file=sys.stderr),
        quiet=False,
    )
    others = {}
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timed = {"xnnpack": qcore_s(model, seen, unseen, stack).timed}
        for name, make in (
            ("ExecuTorch's quantizer, int8", executorch_s),
            ("ONNX Runtime, int8", onnxruntime_s),
        ):
            start = time.perf_counter()
            made = make(model, seen, unseen, stack)
            took = time.perf_counter() - start
            timed[name] = made.timed
            converted = "" if made.converted is None else decibels(wanted, made.converted)
            before = [
                "",
                made.delegates,
                converted,
                decibels(wanted, made.scores),
                f"{imagenet.top1_agreement(wanted, made.scores):.3f}",
                f"{made.size / 1e6:.1f} MB",
            ]
            others[name] = before, ["its runtime, on this machine", "", f"{took:.0f} s"]
        times = alternating(timed)
    return {"report": report.to_dict(), "others": others, "times": times}


def decibels(wanted: torch.Tensor, scores: torch.Tensor) -> str:
    """Return how far scores are from the model's in float, as a cell."""
    return f"{imagenet.sqnr_db(wanted, scores):.1f} dB"


def cells(row: BackendRow, times: Mapping[str, float]) -> list[str]:
    """Return a backend's row of the table; ``times`` has what was timed in alternation."""
    took = f"{row.seconds:.0f} s"
    if row.failure:
        return [f"`{row.backend}`", "none", *[""] * 6, row.failure, "", took]
    run = f"{times[row.backend]:.1f} ms" if row.backend in times else ""
    if row.cycles is not None:
        run = f"{row.cycles / 1e6:.2f} M cycles"
    if row.sram_bytes is not None:
        run += f", {row.sram_bytes / 1e6:.2f} MB of SRAM"
    return [
        f"`{row.backend}`, {row.scheme.split()[0]}",
        f"{row.quantized} of {row.compute_nodes}",
        str(row.delegates),
        "" if row.converted_db is None else f"{row.converted_db:.1f} dB",
        "" if row.executed_db is None else f"{row.executed_db:.1f} dB",
        "" if row.metric is None else f"{row.metric:.3f}",
        f"{row.program_bytes / 1e6:.1f} MB",
        run,
        row.executed_by,
        "`{0}`, {2}".format(*row.loss.rpartition(": ")) if row.loss else "",
        took,
    ]


@attrs.frozen
class Made:
    """A program: its size in bytes, its scores, and the median milliseconds of so many runs.

    The scores of the converted model and the delegates, too, where there are any.
    """

    size: int
    scores: torch.Tensor
    timed: Callable[[int], float]
    converted: torch.Tensor | None = None
    delegates: str = ""


def alternating(timed: Mapping[str, Callable[[int], float]]) -> dict[str, float]:
    """Time programs in turns, so that all meet the same noise; return each one's median."""
    rounds = [{name: run(RUNS_A_ROUND) for name, run in timed.items()} for _ in range(ROUNDS + 1)]
    return {name: statistics.median(r[name] for r in rounds[1:]) for name in timed}


def executed(buffer: bytes, unseen: Sequence[Any], stack: ExitStack) -> Made:
    """Execute a program for XNNPACK on one thread of ExecuTorch's runtime."""
    from xnnpack import host_runner

    session = stack.enter_context(attrs.evolve(host_runner(), threads=1).session(buffer))
    scores = torch.cat([session.run([sample])[0] for sample in unseen])
    bench = partial(session.benchmark, [unseen[0]], warmup=1)
    return Made(len(buffer), scores, lambda runs: float(bench(runs=runs).median_ms))


def qcore_s(
    model: torch.nn.Module, seen: Sequence[Any], unseen: Sequence[Any], stack: ExitStack
) -> Made:
    """Make what the table's row of XNNPACK is about once more, to time it."""
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    program = quantizer.lower(qcore.quantize(model, quantizer, seen).model, (unseen[0],))
    return executed(program.buffer, unseen, stack)


def executorch_s(
    model: torch.nn.Module, seen: Sequence[Any], unseen: Sequence[Any], stack: ExitStack
) -> Made:
    """Quantize with ExecuTorch's own quantizer."""
    from xnnpack_side import with_executorch

    converted, buffer, facts = with_executorch(model, list(seen), {})
    made = executed(buffer, unseen, stack)
    scores = imagenet.logits(converted, unseen)
    return attrs.evolve(made, converted=scores, delegates=str(facts["delegates"]))


def onnxruntime_s(
    model: torch.nn.Module, seen: Sequence[Any], unseen: Sequence[Any], stack: ExitStack
) -> Made:
    """Do the same with ONNX Runtime's static quantization, as its documentation says."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(seen)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self._left, None)
            return None if sample is None else {"x": sample.numpy()}

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    exported, prepared, quantized = (folder / f"{i}.onnx" for i in range(3))
    torch.onnx.export(model, (unseen[0],), exported, dynamo=False, input_names=["x"])
    logging.disable(logging.INFO)
    quant_pre_process(exported, prepared)
    quantize_static(prepared, quantized, Reader(), per_channel=True)
    logging.disable(logging.NOTSET)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(quantized, options)

    def run(sample: Any) -> Any:
        return session.run(None, {"x": sample.numpy()})[0]

    def timed(runs: int) -> float:
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            run(unseen[0])
            seconds.append(time.perf_counter() - start)
        return float(Latency.of(seconds).median_ms)

    scores = torch.cat([torch.from_numpy(run(sample)) for sample in unseen])
    return Made(quantized.stat().st_size, scores, timed)


if __name__ == "__main__":
    sys.exit(main())
