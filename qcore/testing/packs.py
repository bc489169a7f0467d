"""Many small models as one, so that what each becomes is seen in a single program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from attrs import frozen
from torch import nn
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e import MinMaxObserver

from qcore.schemes import QuantizationConfig, QuantizationScheme
from qcore.testing.models import Fn, ZooModel

__all__ = ["UNLIKE_CALIBRATION", "Pack", "with_wide_ranges"]


def _edges(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-8, 8, x.numel()).reshape(x.shape)


#: Inputs that calibration has not seen, made of one that it has.
UNLIKE_CALIBRATION: Final = {
    "larger than those of calibration": lambda x: x * 10,
    "smaller than those of calibration": lambda x: x / 20,
    "of zeros": torch.zeros_like,
    "of one sign, positive": torch.abs,
    "of one sign, negative": lambda x: -x.abs(),
    "at the edges of clamps": _edges,
}


class _WideObserver(MinMaxObserver):  # type: ignore[misc]
    """Gives twice the range of the values that it has seen.

    What a clamp cuts off can then be told apart from what the range cuts off.
    """

    def calculate_qparams(self) -> Any:
        half = (self.max_val - self.min_val) / 2
        return self._calculate_qparams(self.min_val - half, self.max_val + half)


def with_wide_ranges(scheme: QuantizationScheme) -> QuantizationConfig:
    """Return the configuration of a scheme whose ranges of activations are twice as wide.

    Args:
        scheme: The scheme.

    Returns:
        Its configuration; the same where activations are dynamic or in float.
    """
    config = scheme.to_config()
    if scheme.activation is None or scheme.is_dynamic:
        return config
    spec = scheme.activation.activation_qspec(_WideObserver, is_dynamic=False)
    return dataclasses.replace(config, input_activation=spec, output_activation=spec)


@frozen
class Pack:
    """Models side by side: each has its own inputs, and its outputs are one of the pack's.

    Attributes:
        models: The models by name.
    """

    models: Mapping[str, ZooModel]

    @property
    def parts(self) -> dict[str, str]:
        """The names of the models, by that of the submodule they are in the pack."""
        return {f"part{index}": name for index, name in enumerate(self.models)}

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The first sample of each model, one after the other."""
        return tuple(value for model in self.models.values() for value in model.samples[0])

    def inputs_by_kind(self) -> dict[str, tuple[Any, ...]]:
        """Return inputs like those of calibration and unlike them, by what they are."""
        return {
            "like those of calibration": tuple(map(_other, self.inputs)),
            **{kind: self._changed(change) for kind, change in UNLIKE_CALIBRATION.items()},
        }

    def _changed(self, change: Any) -> tuple[Any, ...]:
        return tuple(change(x) if x.is_floating_point() else _other(x) for x in self.inputs)

    def module(self) -> nn.Module:
        """Build the model."""
        sizes = {
            part: len(model.samples[0])
            for part, model in zip(self.parts, self.models.values(), strict=True)
        }

        def forward(m: Any, *inputs: torch.Tensor) -> tuple[Any, ...]:
            left = list(inputs)
            return tuple(
                getattr(m, part)(*[left.pop(0) for _ in range(size)])
                for part, size in sizes.items()
            )

        models = zip(self.parts, self.models.values(), strict=True)
        return Fn(forward, **{part: model.module() for part, model in models}).eval()

    def names_of_leaves(self, outputs: Sequence[Any]) -> Iterator[str]:
        """Yield the name of the model that each flat output is of.

        Args:
            outputs: What the pack returns.
        """
        for name, output in zip(self.models, outputs, strict=True):
            for _ in tree_leaves(output):
                yield name


def _other(x: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor in another order."""
    return x.flip(-1)
