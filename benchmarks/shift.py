"""EfficientNet-Lite0 on hardware whose scales are powers of two: what it costs in accuracy.

Needs ``pip install ./examples/qcore_integer``. Half of the pictures calibrate, the others are
evaluated, and the other way round.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import qcore

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import imagenet

CASES = (("integer", "8a8w per-channel"), ("integer", "8a8w per-tensor"), ("shift", "8a8w"))


def main(crops: int = 16) -> None:
    """Measure each backend of the example.

    Args:
        crops: How many calibrate, and how many others are evaluated.
    """
    model, pictures = imagenet.float_model(), imagenet.PICTURES
    first, second = pictures[: len(pictures) // 2], pictures[len(pictures) // 2 :]
    for seen, unseen in ((first, second), (second, first)):
        print(f"calibrated on {', '.join(seen)}")
        samples = imagenet.calibration_crops(crops, seen)
        others = imagenet.evaluation_crops(crops, unseen)
        expected = imagenet.logits(model, others)
        for backend, scheme in CASES:
            start = time.perf_counter()
            quantizer = qcore.get_quantizer(backend).set_global(scheme)
            result = qcore.quantize(model, quantizer, samples)
            program = quantizer.lower(result.model, (samples[0],))
            converted = imagenet.logits(result.model, others)
            executed = torch.cat(program.run_many([(x,) for x in others]))
            print(
                f"  {backend} {scheme}: program to float "
                f"{imagenet.sqnr_db(expected, executed):.1f} dB, converted model to float "
                f"{imagenet.sqnr_db(expected, converted):.1f} dB, program to converted model "
                f"{imagenet.sqnr_db(converted, executed):.1f} dB, top-1 as in float "
                f"{imagenet.top1_agreement(expected, executed):.0%}, "
                f"{len(result.report.in_float)} nodes in float, "
                f"{len(program.report.undelegated)} computed in float, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
