"""The same for hardware that shifts where others multiply: the backend ``shift``.

What differs is data: the format of its numbers, and how finely each operator scales its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from attrs import define, evolve
from torch.fx import GraphModule

import qcore
from qcore.annotation import SupportTable, annotate_graph
from qcore.formats import NumberFormat, power_of_two
from qcore.plan import QuantizationPlan
from qcore.report import AnnotationReport
from qcore.schemes import QuantizationScheme
from qcore_integer import backend

__all__ = ["ShiftBackend"]

INT8 = NumberFormat("8", torch.int8, -127, 127, symmetric=True, scales=power_of_two)
SCHEME = QuantizationScheme(INT8, INT8, "per_operator")
GRANULARITY: Final[Mapping[str, Any]] = {"conv2d": "per_tensor", "linear": "per_channel"}
TABLE = SupportTable(evolve(row, granularity=GRANULARITY.get(row.name)) for row in backend.TABLE)


@define
class ShiftBackend(backend.IntegerBackend):
    """Symmetric int8 whose scales are powers of two, compiled and executed as for ``integer``."""

    name: ClassVar[str] = "shift"

    @qcore.hookimpl
    def supported_schemes(self) -> Sequence[QuantizationScheme]:
        """One scheme, and the same in training."""
        return (SCHEME, evolve(SCHEME, is_qat=True))

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Apply the support table."""
        return annotate_graph(model, plan, TABLE, self.name)
