"""What a run of ``quantize_`` has chosen, kept in a folder, so that one cut off can go on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from qcore.algorithms import WeightAlgorithm, WeightGrid
from qcore.capture import Sample
from qcore.compat.torchao import TorchAOBaseTensor
from qcore.errors import CalibrationError
from qcore.files import write_whole
from qcore.source.planning import LayerPlan

__all__ = ["Kept", "Recalling"]

#: Integers and scales, by the grid that they are for.
Choices: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor]]


class Recalling(WeightAlgorithm):
    """Chooses what was chosen before, where it was; else asks another algorithm.

    Args:
        algorithm: The other algorithm.
        choices: What was chosen for this weight; new choices are added.
    """

    def __init__(self, algorithm: WeightAlgorithm, choices: Choices) -> None:
        self._algorithm = algorithm
        self._choices = choices

    def choose(
        self, weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Recall or choose."""
        if str(grid) not in self._choices:
            self._choices[str(grid)] = self._algorithm.choose(weight, grid, moment)
        return self._choices[str(grid)]


class Kept:
    """The choices of runs with one model, one algorithm and the same samples.

    Each weight's are a file, written whole, in a folder named after a digest of all these.

    Args:
        folder: Where the folder lies.
        model: The float model.
        groups: The layers to quantize, those of one weight together.
        algorithm: Chooses the weights.
        samples: Samples of the model's inputs.

    Raises:
        CalibrationError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        groups: Sequence[Sequence[LayerPlan]],
        algorithm: WeightAlgorithm,
        samples: Sequence[Sample],
    ) -> None:
        self._files = {group[0].layer.name: f"{index}.pt" for index, group in enumerate(groups)}
        digest = hashlib.sha256()
        plans = [(p.layer.name, p.scheme, p.scale_dtype, p.padding) for g in groups for p in g]
        own = type(algorithm).__repr__ is not object.__repr__
        said = repr(algorithm) if own else f"{algorithm.name} {vars(algorithm)}"
        digest.update(f"{said} {plans}".encode())
        leaves = [value for sample in samples for value in sample.flat()]
        for value in (*model.state_dict().values(), *leaves):
            if isinstance(value, TorchAOBaseTensor):
                value = value.dequantize()
            if isinstance(value, torch.Tensor):
                digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            else:
                digest.update(repr(value).encode())
        self._folder = Path(folder) / digest.hexdigest()[:32]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise CalibrationError(
                f"resume={str(folder)!r} cannot be a folder: {cause.strerror}. Pass one that can "
                "be written to."
            ) from cause

    def has(self, group: Sequence[LayerPlan]) -> bool:
        """Return whether the choices for a group of layers are there."""
        return self._file(group).exists()

    def read(self, group: Sequence[LayerPlan]) -> Choices:
        """Return the choices for a group of layers, none if there are none."""
        return torch.load(self._file(group)) if self.has(group) else {}

    def write(self, group: Sequence[LayerPlan], choices: Choices) -> None:
        """Keep the choices for a group of layers."""
        data = io.BytesIO()
        torch.save(choices, data)
        path = self._file(group)
        write_whole(path, data.getvalue(), "weights", path.name, CalibrationError)

    def _file(self, group: Sequence[LayerPlan]) -> Path:
        return self._folder / self._files[group[0].layer.name]
