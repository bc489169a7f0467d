"""How weights and activations lie on the grids that they are quantized to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from attrs import define, frozen
from torch.fx import GraphModule, Interpreter, Node

from qcore.graph import module_path, tensor_attribute
from qcore_analysis.tracing import flat_inputs

__all__ = ["Histogram", "histograms_of"]

BINS: Final = 40


@frozen
class Histogram:
    """The values of a tensor over the grid that it is quantized to.

    Attributes:
        module: The module that it belongs to; the node's name outside of all.
        kind: ``weight`` or ``activation``.
        counts: Values in each bin between ``low`` and ``high``, the ends of the grid; what lies
            beyond is not in them.
        low: The smallest value of the grid; of the widest channel where each has its own.
        high: The largest.
        levels: How many values the grid has.
        clipped: Share of the values beyond the grid.
        scales: How many scales there are: one, or one for each channel or group.
        zeros: Share of a weight's values that become zero.
        spread: How many times wider the widest channel of a weight with one scale is than the
            narrowest.
    """

    module: str
    kind: str
    counts: tuple[int, ...]
    low: float
    high: float
    levels: int
    clipped: float = 0.0
    scales: int = 1
    zeros: float = 0.0
    spread: float = 1.0

    @property
    def step(self) -> float:
        """The distance between two values of the grid."""
        return (self.high - self.low) / max(self.levels - 1, 1)


@define
class _Activation:
    """What a quantize node has seen."""

    low: float
    high: float
    levels: int
    counts: torch.Tensor
    seen: int = 0


def histograms_of(converted: GraphModule, samples: Iterable[Any]) -> tuple[Histogram, ...]:
    """Gather the weights of a converted model and its activations on samples.

    Args:
        converted: The model, as ``qcore.quantize`` returns it.
        samples: What to run it on.

    Returns:
        One for each weight and each activation with one scale, in the order of the graph. Grids
        that are chosen at run time have none.
    """
    seen: dict[str, _Activation] = {}
    watch = _Watch(converted, seen)
    with torch.no_grad():
        for sample in samples:
            watch.run(*flat_inputs(converted, sample), enable_io_processing=False)
    found = []
    for node in converted.graph.nodes:
        if node.name in seen:
            one = seen[node.name]
            source = node.args[0]
            inside = one.counts.sum().item()
            found.append(
                Histogram(
                    module_path(source) or source.name,
                    "activation",
                    tuple(map(int, one.counts.tolist())),
                    one.low,
                    one.high,
                    one.levels,
                    1 - inside / max(one.seen, 1),
                )
            )
        elif _calls(node, "dequantize_per_") and node.args[0].op == "get_attr":
            found.append(_weight(converted, node))
    return tuple(found)


def _calls(node: Node, prefix: str) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith(prefix)


class _Watch(Interpreter):  # type: ignore[misc]
    def __init__(self, model: GraphModule, seen: dict[str, _Activation]) -> None:
        super().__init__(model)
        self._seen = seen

    def run_node(self, node: Node) -> Any:
        scales = node.args[1:3]
        if _calls(node, "quantize_per_tensor") and not any(isinstance(s, Node) for s in scales):
            (value, scale, zero_point, least, most, *_), _ = self.fetch_args_kwargs_from_env(node)
            low, high = (least - zero_point) * scale, (most - zero_point) * scale
            one = self._seen.setdefault(
                node.name, _Activation(low, high, most - least + 1, torch.zeros(BINS))
            )
            one.counts += torch.histc(value.float(), BINS, low, high)
            one.seen += value.numel()
        return super().run_node(node)


def _weight(model: GraphModule, node: Node) -> Histogram:
    tensor, arguments = node.args[0], list(node.args[1:])
    values = tensor_attribute(model, tensor)
    scales = [tensor_attribute(model, a) if isinstance(a, Node) else a for a in arguments]
    per_channel = "per_channel" in getattr(node.target, "__name__", "")
    least, most = scales[3:5] if per_channel else scales[2:4]
    largest = float(scales[0].max()) if isinstance(scales[0], torch.Tensor) else float(scales[0])
    # Levels, not values: channels of different scales lie on one grid of integers.
    counts = torch.histc(values.float(), BINS, least, most)
    widths = values.float().abs().flatten(1).amax(1) if values.dim() > 1 else torch.ones(1)
    module = next((module_path(user) for user in node.users if module_path(user)), "")
    return Histogram(
        module or tensor.name,
        "weight",
        tuple(map(int, counts.tolist())),
        least * largest,
        most * largest,
        most - least + 1,
        scales=torch.as_tensor(scales[0]).numel(),
        zeros=float((values == 0).float().mean()),
        spread=1.0 if per_channel else float(widths.max() / widths.min().clamp(min=1)),
    )
