"""Programs made of TOSA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram
from qcore_tosa.artifacts import Delegate, save_numbered
from qcore_tosa.reference import TIMEOUT_S, ReferenceRunner

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["TosaProgram"]


@attrs.frozen(eq=False)
class TosaProgram(LoweredProgram):
    """A model compiled by way of TOSA.

    Attributes:
        partitioned: The graph after partitioning; None for a program read from a file.
        delegates: Its delegates with the TOSA graph in each; empty for a program read from a file.
    """

    partitioned: Any = attrs.field(default=None, repr=False)
    delegates: tuple[Delegate, ...] = attrs.field(default=(), repr=False)

    @property
    def host(self) -> str:
        """What executes the program on this machine.

        Raises:
            RuntimeUnavailableError: Nothing does; the message says what to install.
        """
        return str(self.runner)

    def save_tosa(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the TOSA graphs that the delegates were compiled from.

        Args:
            path: The file, by custom with the suffix ``.tosa``. With several delegates, the name
                of each comes before the suffix: ``model.lowered_module_0.tosa``.

        Returns:
            The files.

        Raises:
            LoweringError: There is no delegate, or the files cannot be written.
        """
        return save_numbered(path, {d.name: d.compilation.tosa for d in self._own_delegates()})

    def on_reference_model(self, *, timeout_s: float | None = None) -> Self:
        """Return the same program, executed by the TOSA reference model.

        Args:
            timeout_s: Longest time in seconds for each run of a graph; by default that for a run
                of the program as it is.

        Returns:
            A program whose ``run``, ``run_many``, ``session`` and ``benchmark`` execute the TOSA
            graphs on the reference model, and what no delegate took in PyTorch.

        Raises:
            LoweringError: The program was read from a file.
        """
        delegates = self._own_delegates()
        if timeout_s is None:
            timeout_s = getattr(self.runner, "timeout_s", TIMEOUT_S)
        runner = ReferenceRunner.of(self.partitioned, delegates, timeout_s)
        return attrs.evolve(self, runner=runner)

    def _own_delegates(self) -> tuple[Delegate, ...]:
        if self.partitioned is None:
            raise LoweringError(
                "A program read from a file does not hold its TOSA graphs. "
                "Take the program that lower() returned."
            )
        return self.delegates
