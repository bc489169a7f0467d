"""Random models, all the way; ``make fuzz`` takes as many as there is time for."""

from __future__ import annotations

from qcore.testing.fuzz import RandomModels

# Those that began to stop, fail late or be wrong once.
ONCE_WRONG = {0, 2, 5, 25, 34, 43, 54, 143, 207, 322, 435, 476, 702}


class TestConverted(RandomModels):
    backend = "xnnpack"
    seeds = sorted({*range(21), *ONCE_WRONG})


class TestSourceQuantized(RandomModels):
    backend = "xnnpack"
    flow = "quantize_"
