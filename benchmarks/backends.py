"""EfficientNet-Lite0 on every backend, and what one would take instead on the CPU, in one table.

Calibrated on crops of some pictures, compared on crops of others. ``--write`` puts the table into
README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from qcore.lowering import Latency
from qcore.testing.support import markdown_table, with_parts, write_pages
from qcore_analysis import compare_backends
from qcore_analysis.backends import BackendRow

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import imagenet

README: Final = Path(__file__).parents[1] / "README.md"
BACKENDS: Final = ("xnnpack", "vgf", "ethosu", "vulkan")
OPTIONS: Final = {"ethosu": {"target": "ethos-u85-256"}}
#: What executes in place of a device; not as fast, so its time is not told.
EMULATED: Final = {
    "vgf": "Arm's emulation, on this machine",
    "ethosu": "Arm's reference model; cycles are Vela's",
}
CALIBRATION_CROPS: Final = 32
WARM_UP, RUNS = 5, 30
HEADS: Final = ("", "quantized", "SQNR", "top-1 as float", "size", "one run", "executed by", "took")


def main() -> int:
    """Make the table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default=",".join(BACKENDS), help="names, commas between")
    parser.add_argument("--samples", type=int, default=8, help="crops to compare on")
    parser.add_argument("--time-limit", type=float, default=240, help="seconds for each backend")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    arguments = parser.parse_args()
    model = imagenet.float_model()
    seen = imagenet.calibration_crops(CALIBRATION_CROPS, imagenet.PICTURES[::2])
    unseen = imagenet.evaluation_crops(arguments.samples, imagenet.PICTURES[1::2])
    wanted = imagenet.logits(model, unseen)
    rows = []
    for name, made in (("ExecuTorch's quantizer", executorch_s), ("ONNX Runtime", onnxruntime_s)):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size, scores, median_ms = made(model, seen, unseen, Path(folder))
        rows.append(
            [
                f"{name}, int8",
                "",
                f"{imagenet.sqnr_db(wanted, scores):.1f} dB",
                f"{imagenet.top1_agreement(wanted, scores):.3f}",
                f"{size / 1e6:.1f} MB",
                f"{median_ms:.1f} ms",
                "its runtime, on this machine",
                f"{time.perf_counter() - start:.0f} s",
            ]
        )
        print(*rows[-1], sep="  ", file=sys.stderr)
    report = compare_backends(
        model,
        arguments.backends.split(","),
        seen,
        unseen,
        options=OPTIONS,
        metric=lambda outputs: imagenet.top1_agreement(wanted, torch.cat(list(outputs))),
        time_limit=arguments.time_limit,
        on_row=lambda row: print(*cells(row), sep="  ", file=sys.stderr),
        quiet=False,
    )
    table = markdown_table(HEADS, [*map(cells, report.rows), *rows])
    print(table)
    if not arguments.write:
        return 0
    pages = {README: with_parts(README, {"all backends": f"\n{table}\n"})}
    return write_pages(pages, (), "make backends")


def cells(row: BackendRow) -> list[str]:
    """Return a backend's row of the table."""
    took = f"{row.seconds:.0f} s"
    if row.failure:
        return [f"`{row.backend}`", "none", "", "", "", "", row.failure, took]
    emulated = EMULATED.get(row.backend, "")
    run = "" if row.latency_ms is None or emulated else f"{row.latency_ms:.1f} ms"
    return [
        f"`{row.backend}`, {row.scheme.split()[0]}",
        f"{row.quantized} of {row.compute_nodes}",
        "" if row.executed_db is None else f"{row.executed_db:.1f} dB",
        "" if row.metric is None else f"{row.metric:.3f}",
        f"{row.program_bytes / 1e6:.1f} MB",
        run if row.cycles is None else f"{row.cycles / 1e6:.2f} M cycles",
        emulated or row.executed_by,
        took,
    ]


Made = tuple[int, torch.Tensor, float]


def executorch_s(
    model: torch.nn.Module, seen: Sequence[Any], unseen: Sequence[Any], _: Path
) -> Made:
    """Quantize with ExecuTorch's own quantizer; return bytes, scores and median milliseconds."""
    from xnnpack import host_runner
    from xnnpack_side import with_executorch

    buffer = with_executorch(model, list(seen), {})[1]
    with host_runner().session(buffer) as session:
        scores = torch.cat([session.run([sample])[0] for sample in unseen])
        latency = session.benchmark([unseen[0]], warmup=WARM_UP, runs=RUNS)
    return len(buffer), scores, latency.median_ms


def onnxruntime_s(
    model: torch.nn.Module, seen: Sequence[Any], unseen: Sequence[Any], folder: Path
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

    exported, prepared, quantized = (folder / f"{i}.onnx" for i in range(3))
    torch.onnx.export(model, (unseen[0],), exported, dynamo=False, input_names=["x"])
    quant_pre_process(exported, prepared)
    quantize_static(prepared, quantized, Reader(), per_channel=True)
    session = onnxruntime.InferenceSession(quantized)

    def run(sample: Any) -> Any:
        return session.run(None, {"x": sample.numpy()})[0]

    scores = torch.cat([torch.from_numpy(run(sample)) for sample in unseen])
    seconds = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        run(unseen[0])
        seconds.append(time.perf_counter() - start)
    return quantized.stat().st_size, scores, Latency.of(seconds[WARM_UP:]).median_ms


if __name__ == "__main__":
    sys.exit(main())
