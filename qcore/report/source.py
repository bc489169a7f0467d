"""What source quantization did to a model."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from attrs import frozen

from qcore.report.base import Report
from qcore.report.serialize import figure

__all__ = ["LayerRecord", "SourceReport"]


@frozen
class LayerRecord:
    """What became of one layer.

    Attributes:
        name: Its name in the model.
        kind: Its class.
        weights: How many weights it has.
        bytes_before: Size of its weight in bytes.
        bytes_after: Size in bytes of the quantized weight as a device stores it, scales included:
            a 4-bit weight takes half a byte. Equal to ``bytes_before`` where it stays as it is, and
            0 where it shares what another layer has.
        scheme: The scheme, with its group size; ``None`` where the layer stays as it is.
        rule: The rule that selected it.
        reason: Why it stays as it is, or why it is not quantized quite as asked for.
        tied_with: The layer whose quantized weight it shares.
        algorithm: The name of what chose its weights, where they are quantized; empty where they
            were so before.
    """

    name: str
    kind: str
    weights: int
    bytes_before: int
    bytes_after: int
    scheme: str | None = None
    rule: str = ""
    reason: str = ""
    tied_with: str = ""
    algorithm: str = ""


@frozen
class SourceReport(Report):
    """What ``qcore.quantize_`` did, layer by layer.

    Attributes:
        layers: Every layer with a weight of two dimensions or more, in the model's order.
        bytes_before: Size of all parameters and buffers before, in bytes; shared ones once.
        bytes_after: The same after, quantized weights as a device stores them.
        untied: Layers that shared one weight and no longer do, with the reason.
    """

    kind: ClassVar[str] = "source"

    layers: tuple[LayerRecord, ...]
    bytes_before: int
    bytes_after: int
    untied: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[LayerRecord, ...]:
        """The layers that were quantized."""
        return tuple(layer for layer in self.layers if layer.scheme is not None)

    @figure
    def by_scheme(self) -> dict[str, int]:
        """How many layers have each scheme, the most frequent first."""
        return dict(Counter(str(layer.scheme) for layer in self.quantized).most_common())

    @figure
    def bits_per_weight(self) -> float:
        """Bits that one weight of the quantized layers takes, scales included."""
        stored = [layer for layer in self.quantized if not layer.tied_with]
        weights = sum(layer.weights for layer in stored)
        return 8 * sum(layer.bytes_after for layer in stored) / weights if weights else 0.0

    def __getitem__(self, name: str) -> LayerRecord:
        """Return the record of a layer, by its name."""
        return {layer.name: layer for layer in self.layers}[name]
