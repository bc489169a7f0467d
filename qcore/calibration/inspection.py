"""What calibration samples cannot be right with: said while they are seen, at next to no cost."""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from attrs import Factory, define, frozen
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from qcore.capture import Sample
from qcore.compat.torchao import check_observers
from qcore.graph import control_flow_bodies, is_observer

__all__ = ["Inspection", "Kept"]

_KEPT: Final = 3
_TYPICAL: Final = "32 to 512 typical inputs are usual."
# Fewer samples, or inputs with fewer values, say little of what is usual.
_ENOUGH_SAMPLES: Final = 8
_ENOUGH_VALUES: Final = 16
# Beyond the usual range by as many of its widths: the others lose two of their bits.
_FAR: Final = 3
# What the last quarter of the samples adds to the widths of three quarters of the ranges. One
# large range grows by chance; with samples of 16 normal values, 1 of 100 sets has as much.
_GROWTH: Final = 0.15


@frozen
class Kept:
    """A calibration sample, and the leaves of what the float model returns for it."""

    sample: Sample
    outputs: list[Any]


@define
class Inspection:
    """Statistics of the samples that calibrate a prepared model, and what they show.

    A model without static activations takes any samples: no statistics are kept for it.

    Attributes:
        kept: The first samples.
    """

    _names: list[str]
    _observers: list[Any]
    kept: list[Kept] = Factory(list)
    _count: int = 0
    _values: int = 0  # of the last sample
    _is_batch: bool = False
    _constant: list[int] = Factory(list)
    _copies: list[int] = Factory(list)
    _seen: set[int] = Factory(set)
    # For each input of floating point, a pair of the lowest and the highest value a sample.
    _extents: dict[str, list[tuple[float, float]]] = Factory(dict)
    # For each sample, the lowest and the highest value that each observer has seen until then.
    _ranges: list[torch.Tensor] = Factory(list)

    @classmethod
    def of(cls, prepared: GraphModule) -> Inspection:
        """Find the observers of static activations in a prepared model and in its bodies."""
        graphs = (prepared, *(body for _, _, body in control_flow_bodies(prepared)))
        found = {id(o): o for graph in graphs for o in _static_observers(graph)}
        placeholders = prepared.graph.find_nodes(op="placeholder")
        return cls([str(node.target) for node in placeholders], list(found.values()))

    def see(self, sample: Sample, output: Any) -> None:
        """Take in a sample, and what the prepared model, which rounds nothing, returned for it."""
        if len(self.kept) < _KEPT:
            self.kept.append(Kept(sample, tree_leaves(output)))
        if not self._observers:
            return
        tensors = [
            (name, value.detach())
            for name, value in zip(self._names, sample.flat(), strict=True)
            if isinstance(value, torch.Tensor)
        ]
        digest, varied = 0, False
        for name, value in tensors:
            digest = zlib.crc32(value.reshape(-1).view(torch.uint8).cpu().numpy(), digest)
            self._is_batch |= value.dim() > 1 and value.shape[0] >= _ENOUGH_SAMPLES
            if value.is_complex() or value.numel() < 2:
                continue
            low, high = (float(bound) for bound in value.aminmax())
            varied |= low != high
            if value.is_floating_point() and value.numel() >= _ENOUGH_VALUES:
                self._extents.setdefault(name, []).append((low, high))
        if not varied and any(value.numel() > 1 for _, value in tensors):
            self._constant.append(self._count)
        elif digest in self._seen:
            self._copies.append(self._count)
        self._seen.add(digest)
        bounds = (bound for o in self._observers for bound in (o.min_val, o.max_val))
        self._ranges.append(torch.stack([bound.detach().reshape(()) for bound in bounds]).cpu())
        self._values = sum(value.numel() for _, value in tensors)
        self._count += 1

    def findings(self) -> Iterator[str]:
        """Yield what is wrong with the samples, and what to do: a sentence or more for each."""
        count = self._count
        if count == 1 and not self._is_batch:
            yield (
                "There is one calibration sample, and the ranges of one are too narrow for "
                f"others. Pass more: {_TYPICAL}"
            )
        if self._constant:
            yield _say(
                self._constant,
                count,
                "constant",
                "Every value is the same, and shows no range. Leave such samples out; if all are "
                "so, look at what loads them.",
            )
        if self._copies:
            advice = f"A copy adds nothing. Pass different samples: {_TYPICAL}"
            yield _say(self._copies, count, "the same as an earlier one", advice)
        if count >= _ENOUGH_SAMPLES and self._values >= _ENOUGH_VALUES:
            # A sample that is far outside is why ranges grow.
            outlying = [found for found in map(self._outlying, self._extents) if found]
            yield from outlying or self._growing()

    def _outlying(self, name: str) -> str:
        lows, highs = zip(*self._extents[name], strict=True)
        count = len(lows)
        low = sorted(lows)[math.ceil((count - 1) / 4)]
        high = sorted(highs)[(count - 1) * 3 // 4]
        far = _FAR * (high - low)
        outside = [i for i in range(count) if lows[i] < low - far or highs[i] > high + far]
        if high <= low or not outside:
            return ""
        extent = min(lows[i] for i in outside), max(highs[i] for i in outside)
        return _say(
            outside,
            count,
            "outside of the range of the others",
            f"Input {name!r} goes from {extent[0]:.4g} to {extent[1]:.4g} there, and most samples "
            f"stay within {low:.4g} to {high:.4g}, which is then quantized coarsely. Prepare all "
            "samples alike, as in training, or leave out what the model will not meet.",
        )

    def _growing(self) -> Iterator[str]:
        before, after = self._ranges[-1 - self._count // 4], self._ranges[-1]
        widths = [ranges[1::2] - ranges[::2] for ranges in (before, after)]
        known = widths[1].isfinite() & (widths[1] > 0)
        grown = torch.where(widths[0].isfinite(), widths[1] / widths[0] - 1, math.inf)[known]
        if (
            grown.numel()
            and (least := float(grown.quantile(0.25, interpolation="lower"))) > _GROWTH
        ):
            yield (
                f"The ranges still grow at the end: the last quarter of the {self._count} "
                f"calibration samples made most of them wider by {least:.0%} and more. Pass more "
                "samples, in random order, until they no longer do."
            )


def _say(samples: list[int], count: int, what: str, advice: str) -> str:
    shown = ", ".join(map(str, samples[:4])) + (", ..." if len(samples) > 4 else "")
    verb = "is" if len(samples) == 1 else "are"
    return f"{len(samples)} of {count} calibration samples {verb} {what} (number {shown}). {advice}"


def _static_observers(graph: GraphModule) -> Iterator[Any]:
    """Yield what measures one range for the values of a node, and not for a constant."""
    check_observers()
    for node in filter(is_observer, graph.graph.nodes):
        module: Any = operator.attrgetter(str(node.target))(graph)
        observer = getattr(module, "activation_post_process", module)
        bound = getattr(observer, "min_val", None)
        is_range = isinstance(bound, torch.Tensor) and bound.numel() == 1
        if is_range and not observer.is_dynamic and node.all_input_nodes[0].op != "get_attr":
            yield observer
