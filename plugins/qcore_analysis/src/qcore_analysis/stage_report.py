"""What a comparison of the stages found: as data, and for people."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qcore.report import Report, as_text, figure

__all__ = ["ModuleRecord", "StageRecord", "StageReport"]


@attrs.frozen
class ModuleRecord:
    """One module of the source at one stage, against float.

    Attributes:
        module: Its name in the model; an operator outside of all modules has its node's.
        node: The node whose value it gives.
        sqnr_db: Signal to quantization noise in decibels, with the errors of all before it.
        made_here_db: The same where it is fed with float inputs.
        cosine: Cosine of the angle to the float value.
        max_abs_error: The largest difference of one element.
        diverges: Whether the error made here is larger than the stage should make.
    """

    module: str
    node: str
    sqnr_db: float
    made_here_db: float
    cosine: float
    max_abs_error: float
    diverges: bool


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
    def diverging(self) -> list[ModuleRecord]:
        """The modules that lose too much, the worst first."""
        found = [record for record in self.modules if record.diverges]
        return sorted(found, key=lambda record: record.made_here_db)


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
        """The first stage in which a module loses too much, and the module that loses most."""
        for record in self.stages:
            if record.diverging:
                return record, record.diverging[0]
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
        """The module that loses most there; empty where none does."""
        return self.first[1].module if self.first else ""

    @property
    def worst(self) -> ModuleRecord | None:
        """The module with the largest error made in it, at the last stage that has modules."""
        with_modules = [record.modules for record in self.stages if record.modules]
        return min(with_modules[-1], key=lambda m: m.made_here_db) if with_modules else None


@as_text.register
def _(report: StageReport) -> str:
    lines = [f"{report.backend}: {report.samples} samples, each stage against float"]
    if report.first:
        where, module = report.first
        lines.append(
            f"  First to diverge: {module.module}, {where.name}: {module.made_here_db:.1f} dB made "
            f"there (below {report.least_db:g} dB)"
        )
    else:
        lines.append(f"  No module makes an error below {report.least_db:g} dB.")
    for record in report.stages:
        if record.sqnr_db is None:
            lines.append(f"  {record.name:>14}: {record.note}")
            continue
        top1 = "" if record.top1 is None else f", top-1 agreement {record.top1:.3f}"
        figures = f"{record.sqnr_db:6.1f} dB, largest difference {record.max_abs_error:.3g}{top1}"
        lines.append(f"  {record.name:>14}: {figures}")
        if record.note:
            lines.append(f"                  {record.note}")
    with_modules = [record for record in report.stages if len(record.modules) > 1]
    if with_modules:
        lines.append(f"  Modules, {with_modules[-1].name}, the largest error made there first:")
        worst = sorted(with_modules[-1].modules, key=lambda m: m.made_here_db)
        lines += [
            f"    {m.made_here_db:6.1f} dB made here, {m.sqnr_db:6.1f} dB in all  {m.module}"
            for m in worst[:10]
        ]
        lines += [f"    and {len(worst) - 10} more, see --json"] if len(worst) > 10 else []
    return "\n".join(lines)
