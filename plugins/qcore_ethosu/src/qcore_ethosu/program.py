"""Programs for Ethos-U."""

from __future__ import annotations

import attrs

from qcore_tosa.program import TosaProgram

__all__ = ["EthosUProgram"]


@attrs.frozen(eq=False)
class EthosUProgram(TosaProgram):
    """A model compiled for Ethos-U by Vela, as a ``.pte`` with the command stream inside.

    No host executes the command stream. ``run`` executes the TOSA graph that it was compiled from
    on Arm's reference model, whose integers are those that TOSA prescribes for every device.
    ``report`` is an :class:`qcore_ethosu.report.EthosUReport`, with Vela's figures.
    """
