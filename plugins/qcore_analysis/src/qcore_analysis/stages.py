"""Where accuracy goes: each stage of a model's way, module by module, against float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import attrs
import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from qcore.algorithms import Algorithm
from qcore.errors import RuntimeUnavailableError
from qcore.graph import clone
from qcore.quiet import quiet as quiet_libraries
from qcore.report import Report, as_text, figure
from qcore_analysis.bisection import wrong_module
from qcore_analysis.measures import NO_NOISE_DB, Distance, distance_of
from qcore_analysis.progress import stage
from qcore_analysis.samples import as_example, taken_by_the_model
from qcore_analysis.tracing import Anchor, Trace, anchors_of, flat_inputs, float_counterparts

if TYPE_CHECKING:
    from qcore import LoweredProgram, QuantizedModel, Quantizer

__all__ = ["Compared", "ModuleRecord", "StageRecord", "StageReport", "compare", "compare_stages"]

#: What a rewrite before quantizing keeps: floating-point sums in another order.
SAME_NUMERICS_DB: Final = 60.0


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
        sqnr_db: Signal to quantization noise of the outputs in decibels.
        cosine: Cosine of the angle between the outputs.
        max_abs_error: The largest difference of one element.
        top1: Share of rows with the same largest element; null where the outputs are no logits.
        before_db: SQNR against the stage before.
        note: Why there is no more.
        modules: In the order of the graph; none where a runtime gives no values out.
    """

    name: str
    sqnr_db: float
    cosine: float
    max_abs_error: float
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


@attrs.frozen
class Compared:
    """A comparison and what was made for it.

    Attributes:
        report: The comparison.
        result: The quantized model.
        program: The program; None where it was not to be executed.
        outputs: What it returned for each sample; None where nothing executed it.
    """

    report: StageReport
    result: QuantizedModel
    program: LoweredProgram | None
    outputs: list[Any] | None


def compare_stages(
    model: Any,
    quantizer: Quantizer,
    calibration_data: Iterable[Any],
    evaluation_data: Iterable[Any],
    *,
    algorithms: Sequence[str | Algorithm] = ("bias_correction",),
    execute: bool = True,
    least_db: float = 20.0,
    lowering: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> StageReport:
    """Say where accuracy goes: quantize a model, and compare each stage of its way with float.

    The stages are the model as the backend rewrites it, with fake quantization where values were
    observed, converted, and executed. Where the program differs from the converted model, the first
    module that does is found by bisection, with programs that end there.

    Args:
        model: A ``torch.nn.Module`` in evaluation mode or an ``ExportedProgram``; never changed.
        quantizer: What to quantize.
        calibration_data: Samples to choose ranges with.
        evaluation_data: Samples to compare on; others than the first, or the figures flatter.
        algorithms: As for ``qcore.quantize``.
        execute: Whether to lower and run it, too.
        least_db: The SQNR below which the error of a module, or of a program against its converted
            model, counts as too large.
        lowering: Options for ``quantizer.lower``.
        quiet: Whether to show no stages on a terminal.

    Returns:
        The report; its ``first_stage`` and ``first_module`` are where to look.

    Raises:
        QcoreError: As ``qcore.quantize`` and ``quantizer.lower``.
    """
    return compare(
        model,
        quantizer,
        calibration_data,
        list(evaluation_data),
        algorithms=algorithms,
        execute=execute,
        least_db=least_db,
        lowering=lowering or {},
        quiet=quiet,
    ).report


def compare(
    model: Any,
    quantizer: Quantizer,
    calibration_data: Iterable[Any],
    samples: list[Any],
    *,
    algorithms: Sequence[str | Algorithm],
    execute: bool,
    least_db: float,
    lowering: Mapping[str, Any],
    quiet: bool,
) -> Compared:
    """Do the same as :func:`compare_stages`, and return what was made for it, too."""
    import qcore

    watch = _Watch()
    with stage(f"{quantizer.name}: quantizing", quiet):
        result = qcore.quantize(model, quantizer, calibration_data, algorithms=[*algorithms, watch])
    converted = result.model
    with stage(f"{quantizer.name}: comparing the stages", quiet):
        way = _Way.of(model, watch, converted, samples)
        records = way.eager_records(least_db)
    program, outputs = None, None
    if execute:
        with stage(f"{quantizer.name}: lowering", quiet):
            program = quantizer.lower(converted, as_example(samples[0]), **lowering)
        with stage(f"{quantizer.name}: executing", quiet):
            try:
                outputs = program.run_many(samples)
            except RuntimeUnavailableError as error:
                note = f"not executed: {error}"
                records.append(StageRecord("executed", NO_NOISE_DB, 1.0, 0.0, note=note))
            else:
                find = partial(
                    wrong_module, converted, quantizer, way.anchors, samples[:2], least_db, lowering
                )
                records.append(way.executed_record(outputs, least_db, find))
    report = StageReport(quantizer.name, len(samples), least_db, tuple(records))
    return Compared(report, result, program, outputs)


class _Watch(Algorithm):
    """Keeps the graphs of the stages as they pass; changes nothing."""

    name = "qcore_analysis_watch"

    def __init__(self) -> None:
        self.transformed: GraphModule | None = None
        self.prepared: GraphModule | None = None

    def before_observing(self, model: GraphModule) -> None:
        """Keep the transformed graph; bodies of control flow come later."""
        if self.transformed is None:
            self.transformed = clone(model)

    def attach(self, graphs: Sequence[GraphModule]) -> Callable[[], object]:
        """Keep the graph with its observers once they have seen the samples."""

        def finish() -> None:
            self.prepared = clone(graphs[0])

        return finish


@attrs.define
class _Way:
    """What the stages before lowering make of the samples.

    Attributes:
        anchors: The modules.
        references: The float model's output for each sample.
        outputs: The last stage's.
        found: Name, outputs, distances by anchor (with inherited errors, made here) of each stage.
    """

    anchors: tuple[Anchor, ...]
    references: list[list[Any]]
    found: list[tuple[str, list[list[Any]], dict[str, tuple[Distance, Distance]]]]

    @classmethod
    def of(cls, model: Any, watch: _Watch, converted: GraphModule, samples: Sequence[Any]) -> _Way:
        transformed, prepared = watch.transformed, watch.prepared
        assert transformed is not None
        assert prepared is not None
        anchors = anchors_of(transformed)
        names = frozenset(anchor.node for anchor in anchors)
        with taken_by_the_model(0):
            captured = _captured(model, samples[0])
        counterparts = float_counterparts(captured, anchors)
        graphs = {"transformed": transformed, "fake-quantized": prepared, "converted": converted}
        distances: dict[str, dict[str, tuple[Distance, Distance]]] = {
            name: {anchor.node: (Distance(), Distance()) for anchor in anchors} for name in graphs
        }
        outputs: dict[str, list[list[Any]]] = {name: [] for name in ("float", *graphs)}
        for index, sample in enumerate(samples):
            source = Trace(captured, frozenset(counterparts.values()))
            with taken_by_the_model(index):
                outputs["float"].append(source.of(flat_inputs(captured, sample)))
            originals = {node: source.values[name] for node, name in counterparts.items()}
            reference = Trace(transformed, names)
            reference.of(flat_inputs(transformed, sample))
            for name, graph in graphs.items():
                own = originals if graph is transformed else reference.values
                inputs, rounds = flat_inputs(graph, sample), graph is prepared
                with_inherited = Trace(graph, names, rounds=rounds)
                outputs[name].append(with_inherited.of(inputs))
                alone = Trace(graph, names, rounds=rounds, references=own)
                alone.of(inputs)
                for node, (inherited, made_here) in distances[name].items():
                    if node in own and _fits(own[node], with_inherited.values.get(node)):
                        inherited.add(own[node], with_inherited.values[node])
                        made_here.add(own[node], alone.values[node])
        references = outputs.pop("float")
        return cls(anchors, references, [(n, outputs[n], distances[n]) for n in graphs])

    def eager_records(self, least_db: float) -> list[StageRecord]:
        """Return the stages that run in PyTorch."""
        records, before = [], self.references
        for name, outputs, distances in self.found:
            least = SAME_NUMERICS_DB if name == "transformed" else least_db
            modules = tuple(
                ModuleRecord(
                    anchor.module,
                    anchor.node,
                    inherited.sqnr_db,
                    made_here.sqnr_db,
                    inherited.cosine,
                    inherited.largest,
                    made_here.sqnr_db < least and made_here.signal > 0,
                )
                for anchor in self.anchors
                for inherited, made_here in (distances[anchor.node],)
                if inherited.signal or inherited.noise
            )
            records.append(_record(name, self.references, before, outputs, modules=modules))
            before = outputs
        return records

    def executed_record(
        self,
        returned: Sequence[Any],
        least_db: float,
        find: Callable[[], Anchor | None],
    ) -> StageRecord:
        """Return the stage that a runtime executes, with the first module that it gets wrong."""
        converted = self.found[-1][1]
        outputs = [tree_leaves(output) for output in returned]
        to_converted = distance_of(converted, outputs)
        if to_converted.sqnr_db >= least_db:
            return _record("executed", self.references, converted, outputs)
        wrong = find()
        note = f"the program differs from the converted model ({to_converted.sqnr_db:.1f} dB)"
        if wrong is None:
            note += "; programs that end at single modules do not"
            return _record("executed", self.references, converted, outputs, note)
        sqnr = to_converted.sqnr_db
        module = ModuleRecord(
            wrong.module, wrong.node, sqnr, sqnr, to_converted.cosine, to_converted.largest, True
        )
        note += f"; programs that end before {wrong.module} do not"
        return _record("executed", self.references, converted, outputs, note, (module,))


def _captured(model: Any, sample: Any) -> GraphModule:
    if not isinstance(model, torch.nn.Module):
        return cast(GraphModule, model.module(check_guards=False))
    keywords = sample if isinstance(sample, Mapping) else None
    with quiet_libraries():
        exported = torch.export.export(model, () if keywords else as_example(sample), keywords)
    return cast(GraphModule, exported.module(check_guards=False))


def _fits(reference: torch.Tensor, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == reference.shape


def _record(
    name: str,
    references: list[list[Any]],
    before: list[list[Any]],
    outputs: list[list[Any]],
    note: str = "",
    modules: tuple[ModuleRecord, ...] = (),
) -> StageRecord:
    found = distance_of(references, outputs)
    return StageRecord(
        name,
        found.sqnr_db,
        found.cosine,
        found.largest,
        found.top1,
        distance_of(before, outputs).sqnr_db,
        note,
        modules,
    )


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
        top1 = "" if record.top1 is None else f", top-1 agreement {record.top1:.3f}"
        figures = f"{record.sqnr_db:6.1f} dB, largest difference {record.max_abs_error:.3g}{top1}"
        lines.append(f"  {record.name:>14}: {record.note if not record.before_db else figures}")
        if record.note and record.before_db:
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
