"""Algorithms that change weights and biases, and those that choose the weights of ``quantize_``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qcore.algorithms.bias_correction import BiasCorrection
from qcore.algorithms.gptq import Gptq
from qcore.algorithms.mse import SquaredError
from qcore.algorithms.protocol import Algorithm
from qcore.algorithms.weights import WeightAlgorithm, WeightGrid
from qcore.names import look_up

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "BiasCorrection",
    "Gptq",
    "SquaredError",
    "WeightAlgorithm",
    "WeightGrid",
    "chosen_algorithms",
]

#: The algorithms that have a name.
ALGORITHMS: Final[dict[str, Algorithm]] = {BiasCorrection.name: BiasCorrection()}


def chosen_algorithms(wanted: Iterable[str | Algorithm]) -> tuple[Algorithm, ...]:
    """Return the algorithms that a user asked for, by name or as objects, each once."""
    own = "One of your own is an object of a subclass of qcore.algorithms.Algorithm."
    given = [wanted] if isinstance(wanted, (str, Algorithm)) else wanted
    found = (look_up(one, ALGORITHMS, Algorithm, "algorithm", own) for one in given)
    return tuple(dict.fromkeys(found))
