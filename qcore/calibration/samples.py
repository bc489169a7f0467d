"""Calibration samples: read, checked against the model, and run through it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Final

import torch
from attrs import frozen
from torch.fx import GraphModule, Node
from tqdm import tqdm

from qcore.calibration.inspection import Inspection
from qcore.capture import Sample
from qcore.errors import CalibrationError
from qcore.graph import differing_sizes, size_symbols
from qcore.progress import bar_is_off

__all__ = ["CalibrationData", "calibrate", "check_arguments", "check_device", "check_sample"]

_ONLY_INPUTS: Final = (
    "Yield only the model's inputs, for example ((images,) for images, labels in loader)."
)


@frozen
class CalibrationData:
    """Samples of which the first, to capture the model with, is drawn before the others."""

    first: Sample
    total: int | None
    _rest: Iterator[Any]

    @classmethod
    def of(cls, samples: Iterable[Any]) -> CalibrationData:
        """Draw the first of the samples, which are as ``qcore.quantize`` takes them."""
        if isinstance(samples, (torch.Tensor, str, bytes)) or not isinstance(samples, Iterable):
            raise CalibrationError(
                f"The calibration data is one {type(samples).__name__}; a collection of samples "
                "is due. Wrap it: [(x,)] is one sample with one input."
            )
        iterator = iter(samples)
        try:
            first = next(iterator)
        except StopIteration:
            hint = (
                "It is an iterator that may have been used up already: pass a list, or a new one."
                if iterator is samples
                else "Pass at least one sample; 32 to 512 typical inputs are usual."
            )
            raise CalibrationError(f"The calibration data has no samples. {hint}") from None
        total = len(samples) if isinstance(samples, Sized) else None
        return cls(Sample.of(first), total, iterator)

    def __iter__(self) -> Iterator[Sample]:
        yield self.first
        yield from map(Sample.of, self._rest)


def calibrate(
    prepared: GraphModule, data: CalibrationData, *, progress: bool | None = None
) -> Inspection:
    """Run every sample through a prepared model, and return what is seen of them.

    ``progress`` shows a bar; ``None`` means: on a terminal.
    """
    placeholders = [n for n in prepared.graph.nodes if n.op == "placeholder"]
    bar = tqdm(
        data,
        total=data.total,
        desc="calibrate",
        unit="sample",
        leave=False,
        disable=bar_is_off(progress),
    )
    inspection = Inspection.of(prepared)
    with torch.no_grad():
        for index, sample in enumerate(bar):
            check_sample(sample, placeholders, f"Calibration sample {index}")
            inspection.see(sample, prepared(*sample.args, **sample.kwargs))
    return inspection


def check_arguments(sample: Sample, model: torch.nn.Module) -> None:
    """Raise CalibrationError unless a module can be called with a sample."""
    arrays = [v for v in sample.flat() if hasattr(v, "__array__") and not torch.is_tensor(v)]
    if arrays:
        raise CalibrationError(
            f"Calibration sample 0 holds a {type(arrays[0]).__name__}, and models take tensors. "
            "Convert it: torch.as_tensor(x)."
        )
    check_device(sample, model, "Calibration sample 0")
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return  # Written in C or scripted: torch.export will judge.
    try:
        signature.bind(*sample.args, **sample.kwargs)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no inputs"
        raise CalibrationError(
            f"Calibration sample 0 does not fit {type(model).__name__}.forward({takes}): {error}. "
            f"{_ONLY_INPUTS}"
        ) from None


def check_device(sample: Sample, model: torch.nn.Module, what: str) -> None:
    """Raise CalibrationError if a sample lies elsewhere than a model that lies in one place."""
    places = {value.device for value in (*model.parameters(), *model.buffers())}
    for value in sample.flat():
        if isinstance(value, torch.Tensor) and len(places) == 1 and value.device not in places:
            raise _elsewhere(what, value, *places)


def _elsewhere(what: str, value: torch.Tensor, place: torch.device) -> CalibrationError:
    return CalibrationError(
        f"{what} is on {value.device}, and the model on {place}. Move one: x.to({str(place)!r}), "
        "or the model before it is captured."
    )


def check_sample(sample: Sample, placeholders: list[Node], what: str) -> None:
    """Raise CalibrationError unless a sample fits the inputs of a captured model and is finite."""
    values = sample.flat()
    names = [str(node.target) for node in placeholders]
    if len(values) != len(placeholders):
        raise CalibrationError(
            f"{what} has {len(values)} inputs, and the model takes {len(names)}: "
            f"{', '.join(names)}. {_ONLY_INPUTS}"
        )
    tensors = []
    for name, value, node in zip(names, values, placeholders, strict=True):
        expected = node.meta.get("val")
        if isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor):
            _check_tensor(value, expected, f"{what}, input {name!r}")
            tensors.append((name, size_symbols(expected), value.shape))
    if differing := differing_sizes(tensors):
        raise CalibrationError(f"{what} does not fit together: {differing}")


def _check_tensor(value: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    if value.device != expected.device:
        raise _elsewhere(where, value, expected.device)
    if value.dtype != expected.dtype:
        kind = str(expected.dtype).removeprefix("torch.")
        raise CalibrationError(
            f"{where} is {value.dtype}, and the model was captured with {expected.dtype}. "
            f"Convert it: x.to(torch.{kind})."
        )
    sizes = tuple(expected.shape)
    fits = len(value.shape) == len(sizes) and all(
        isinstance(want, torch.SymInt) or have == want
        for have, want in zip(value.shape, sizes, strict=True)
    )
    if not fits:
        shown = ", ".join("any" if isinstance(s, torch.SymInt) else str(s) for s in sizes)
        raise CalibrationError(
            f"{where} has shape {tuple(value.shape)}, and the model was captured with ({shown}). "
            "Give all samples one shape (a loader's last batch may be smaller: drop_last=True), or "
            "pass dynamic_shapes."
        )
    if not value.numel():
        raise CalibrationError(
            f"{where} is empty: its shape is {tuple(value.shape)}, so there is nothing to measure. "
            "Leave the sample out."
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        kind = "NaN" if torch.isnan(value).any() else "infinite values"
        raise CalibrationError(
            f"{where} contains {kind}: ranges measured on it would be meaningless. "
            "Check the preprocessing, or leave the sample out."
        )
