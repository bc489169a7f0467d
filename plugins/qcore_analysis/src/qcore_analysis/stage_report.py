"""What a comparison of the stages found: as data, and for people."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Final, Self

import attrs

from qcore.report import Report, as_text, figure
from qcore_analysis.measures import Distance

if TYPE_CHECKING:
    from qcore_analysis.tracing import Anchor

__all__ = ["EXECUTED", "ModuleDistances", "ModuleRecord", "StageRecord", "StageReport"]

#: The stage that a runtime executes.
EXECUTED: Final = "executed"
#: How many modules of a stage the text has.
_MOST: Final = 10


@attrs.define
class ModuleDistances:
    """How far the value of a module is from others at one stage.

    Attributes:
        to_float: From the float model's.
        to_before: From that at the stage before.
        made_here: What it makes of right inputs, from what it should.
        computed: The same before its value is quantized; nothing of what a runtime executes.
    """

    to_float: Distance = attrs.field(factory=Distance)
    to_before: Distance = attrs.field(factory=Distance)
    made_here: Distance = attrs.field(factory=Distance)
    computed: Distance = attrs.field(factory=Distance)


@attrs.frozen
class ModuleRecord:
    """One module of the source at one stage, against float and against the stage before.

    Attributes:
        module: Its name in the model; an operator outside of all modules has its node's.
        node: The node whose value it gives.
        sqnr_db: Signal to quantization noise in decibels, with the errors of all before it.
        made_here_db: The same where it is fed with float inputs; of what is executed, against the
            converted model's module that is fed with the same. Null where nobody knows: of programs
            that end at single modules, the one that finds the first error does alone.
        cosine: Cosine of the angle to the float value.
        max_abs_error: The largest difference of one element.
        before_db: SQNR against its value at the stage before.
        before_cosine: Cosine of the angle to that.
        before_max_abs_error: The largest difference of one element from that.
        diverges: Whether the error made here is larger than the stage should make.
        made_here_cosine: Cosine of the angle between what it makes of right inputs and what it
            should; null where nobody knows.
        made_here_max_abs_error: The largest difference of one element of these.
        computed_db: As made_here_db, before the value itself is rounded and clipped: what is lost
            by its weights, and inside of it. Null of what is executed.
    """

    module: str
    node: str
    sqnr_db: float
    made_here_db: float
    cosine: float
    max_abs_error: float
    before_db: float
    before_cosine: float
    before_max_abs_error: float
    diverges: bool
    made_here_cosine: float = math.nan
    made_here_max_abs_error: float = math.nan
    computed_db: float = math.nan

    @classmethod
    def of(
        cls, anchor: Anchor, found: ModuleDistances, least_db: float, *, knows_own: bool = True
    ) -> Self:
        """Make a record of what was measured.

        Args:
            anchor: The module.
            found: What was measured.
            least_db: The SQNR below which an error made here diverges.
            knows_own: Whether the error made here is known.
        """
        to_float, to_before, made_here = found.to_float, found.to_before, found.made_here
        return cls(
            anchor.module,
            anchor.node,
            to_float.sqnr_db,
            made_here.sqnr_db if knows_own else math.nan,
            to_float.cosine,
            to_float.largest,
            to_before.sqnr_db,
            to_before.cosine,
            to_before.largest,
            knows_own and made_here.signal > 0 and made_here.sqnr_db < least_db,
            made_here.cosine if knows_own else math.nan,
            made_here.largest if knows_own else math.nan,
            found.computed.sqnr_db if found.computed.signal else math.nan,
        )


@attrs.frozen
class StageRecord:
    """The model's outputs at one stage, against float, and its modules.

    Attributes:
        name: The stage: transformed, fake-quantized, converted or executed.
        sqnr_db: Signal to quantization noise of the outputs in decibels; null, as what follows,
            where the stage was not executed.
        cosine: Cosine of the angle between the outputs.
        max_abs_error: The largest difference of one element.
        top1: Share of rows with the same largest element; null where the outputs are no logits.
        before_db: SQNR against the stage before.
        note: Why there is no more.
        modules: In the order of the graph; none where a runtime gives no values out.
    """

    name: str
    sqnr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    top1: float | None = None
    before_db: float | None = None
    note: str = ""
    modules: tuple[ModuleRecord, ...] = ()

    @property
    def diverging(self) -> ModuleRecord | None:
        """The module to look at: the one that loses most; of a runtime's, the first wrong one.

        Where a runtime has a wrong kernel, that is wrong wherever it is used.
        """
        found = [record for record in self.modules if record.diverges]
        if self.name != EXECUTED:
            found = _worst_first(found)
        return found[0] if found else None


@attrs.frozen
class StageReport(Report):
    """Where accuracy goes between the float model and what is executed.

    Attributes:
        samples: How many samples were compared.
        least_db: The SQNR below which an error counts as too large.
        stages: In the order of the way.
    """

    kind: ClassVar[str] = "stages"

    samples: int = 0
    least_db: float = 20.0
    stages: tuple[StageRecord, ...] = ()

    @property
    def first(self) -> tuple[StageRecord, ModuleRecord] | None:
        """The first stage in which a module loses too much, and that module."""
        for record in self.stages:
            if record.diverging:
                return record, record.diverging
        return None

    @property
    def last(self) -> StageRecord | None:
        """The last stage that was executed."""
        return next((one for one in reversed(self.stages) if one.sqnr_db is not None), None)

    @figure
    def first_stage(self) -> str:
        """The first stage in which a module loses too much; empty where none does."""
        return self.first[0].name if self.first else ""

    @figure
    def first_module(self) -> str:
        """The module that does, most of all or, of what is executed, first; empty where none."""
        return self.first[1].module if self.first else ""

    @property
    def worst(self) -> ModuleRecord | None:
        """The module that a runtime gets wrong, or else makes the largest error, converted."""
        if self.first and self.first[0].name == EXECUTED:
            return self.first[1]
        found = [record for record in self.stages if record.modules and record.name != EXECUTED]
        return _worst_first(found[-1].modules)[0] if found else None

    def to_text(self, *, all_modules: bool = False) -> str:
        """Return the report as text.

        Args:
            all_modules: Whether to list all modules, and not those alone with the largest errors.
        """
        lines = [f"{self.backend}: {self.samples} samples, each stage against float"]
        if self.first:
            where, module = self.first
            lines.append(
                f"  First to diverge: {module.module}, {where.name}: {_decibels(module)} made "
                f"there (below {self.least_db:g} dB)"
            )
        else:
            lines.append(f"  No module makes an error below {self.least_db:g} dB.")
        for record in self.stages:
            if record.sqnr_db is None:
                lines.append(f"  {record.name:>14}: {record.note}")
                continue
            top1 = "" if record.top1 is None else f", top-1 agreement {record.top1:.3f}"
            figures = (
                f"{record.sqnr_db:6.1f} dB, largest difference {record.max_abs_error:.3g}{top1}"
            )
            lines.append(f"  {record.name:>14}: {figures}")
            if record.note:
                lines.append(f"                  {record.note}")
        # Those of fake quantization are nearly those of the converted model.
        for record in self.stages[-2:]:
            lines += _table(record, len(record.modules) if all_modules else _MOST)
        return "\n".join(lines)


def _table(record: StageRecord, most: int) -> list[str]:
    if not record.modules:
        return []
    worst = _worst_first(record.modules)
    lines = [
        f"  Modules, {record.name}, the largest error made there first:",
        "    made here     in all  from the stage before",
    ]
    lines += [
        f"    {_decibels(m)}  {m.sqnr_db:6.1f} dB              {m.before_db:6.1f} dB  {m.module}"
        for m in worst[:most]
    ]
    return [*lines, f"    and {len(worst) - most} more: --all"] if len(worst) > most else lines


def _decibels(module: ModuleRecord) -> str:
    known = not math.isnan(module.made_here_db)
    return f"{module.made_here_db:6.1f} dB" if known else "not known"


def _worst_first(modules: Iterable[ModuleRecord]) -> list[ModuleRecord]:
    return sorted(modules, key=lambda m: (math.isnan(m.made_here_db), m.made_here_db))


@as_text.register
def _(report: StageReport) -> str:
    return report.to_text()
