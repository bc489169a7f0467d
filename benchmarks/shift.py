"""EfficientNet-Lite0 on hardware whose scales are powers of two: what it costs in accuracy.

Needs ``pip install ./examples/qcore_integer``. Calibration has not seen the crops of the pictures.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import qcore

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import imagenet


def main(pictures: int = 8) -> None:
    """Measure each backend of the example.

    Args:
        pictures: How many crops are evaluated; twice as many calibrate.
    """
    model, samples = imagenet.float_model(), imagenet.calibration_crops(2 * pictures)
    crops = imagenet.evaluation_crops(pictures)
    expected = imagenet.logits(model, crops)
    for backend, scheme in (
        ("integer", "8a8w per-channel"),
        ("integer", "8a8w per-tensor"),
        ("shift", "8a8w"),
    ):
        start = time.perf_counter()
        quantizer = qcore.get_quantizer(backend).set_global(scheme)
        result = qcore.quantize(model, quantizer, samples)
        program = quantizer.lower(result.model, (samples[0],))
        converted = imagenet.logits(result.model, crops)
        executed = torch.cat(program.run_many([(crop,) for crop in crops]))
        print(
            f"{backend} {scheme}: program to float {imagenet.sqnr_db(expected, executed):.1f} dB, "
            f"converted model to float {imagenet.sqnr_db(expected, converted):.1f} dB, "
            f"program to converted model {imagenet.sqnr_db(converted, executed):.1f} dB, "
            f"top-1 as in float {imagenet.top1_agreement(expected, executed):.0%}, "
            f"{len(result.report.in_float)} nodes in float, "
            f"{len(program.report.undelegated)} computed in float, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
