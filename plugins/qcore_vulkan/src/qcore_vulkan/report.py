"""What was compared of a Vulkan program."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from qcore.report import Verification, figure, notes

__all__ = ["VulkanVerification", "WeightCheck"]


@frozen
class WeightCheck:
    """One quantized weight inside the program.

    Attributes:
        operator: The operator that reads it.
        shape: Its rows and columns, unpacked.
        bits: Bits of a stored weight.
        matches: Whether a layer of the quantized model has exactly these values and scales.
    """

    operator: str
    shape: tuple[int, int]
    bits: int
    matches: bool


@frozen
class VulkanVerification(Verification):
    """The quantized weights inside a program, and its outputs by reference implementations.

    Attributes:
        weights: The quantized weights inside the delegates.
        expected_weights: How many quantized weights the model has.
        operators: The operators of the Vulkan graphs, with how often each is called.
        difference: How the outputs differ by more than another rounding of activations explains;
            empty where they do not.
    """

    weights: tuple[WeightCheck, ...]
    expected_weights: int
    operators: Mapping[str, int]
    difference: str = ""

    @figure
    def exact_weights(self) -> int:
        """How many weights of the program are exactly those of the model."""
        return sum(weight.matches for weight in self.weights)

    @figure
    def ok(self) -> bool:
        """Whether all weights are there, exactly, and the outputs agree up to rounding."""
        exact = self.exact_weights == len(self.weights) == self.expected_weights
        return exact and not self.difference


@notes.register
def _(report: VulkanVerification) -> tuple[str, ...]:
    calls = ", ".join(f"{name} x{count}" for name, count in report.operators.items())
    differs = (f"wrong: {report.difference}",) if report.difference else ()
    return (
        *differs,
        f"{report.exact_weights} of {report.expected_weights} quantized weights are in the "
        "program, exactly",
        f"graph: {calls}",
        "computed with reference implementations; no shader and no driver ran",
    )
