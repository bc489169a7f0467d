"""Where accuracy goes: each stage of a model's way, module by module, against float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from qcore.algorithms import Algorithm
from qcore.cli.progress import Over, bars, step
from qcore.errors import RuntimeUnavailableError
from qcore.graph import clone
from qcore.quiet import quiet as quiet_libraries
from qcore_analysis.executed_stage import Execution
from qcore_analysis.measures import distance_of
from qcore_analysis.samples import as_example, executed, taken_by_the_model
from qcore_analysis.stage_report import (
    EXECUTED,
    ModuleDistances,
    ModuleRecord,
    StageRecord,
    StageReport,
)
from qcore_analysis.tracing import Anchor, Trace, anchors_of, flat_inputs, float_counterparts

if TYPE_CHECKING:
    from qcore import LoweredProgram, QuantizedModel, Quantizer

__all__ = ["Compared", "compare", "compare_stages"]

#: What a rewrite before quantizing keeps: floating-point sums in another order.
SAME_NUMERICS_DB: Final = 60.0


@attrs.frozen
class Compared:
    """A comparison and what was made for it.

    Attributes:
        report: The comparison.
        result: The quantized model.
        program: The program; None where it was not to be executed.
        outputs: What it returned for each sample; None where nothing executed it.
        float_values: Gives what the modules have in float for a sample, by their nodes.
    """

    report: StageReport
    result: QuantizedModel
    program: LoweredProgram | None
    outputs: list[Any] | None
    float_values: Callable[[Any], Mapping[str, torch.Tensor]]


def compare_stages(
    model: Any,
    quantizer: Quantizer,
    calibration_data: Iterable[Any],
    evaluation_data: Iterable[Any],
    *,
    algorithms: Sequence[str | Algorithm] = ("bias_correction",),
    execute: bool = True,
    executed_modules: bool = False,
    least_db: float = 20.0,
    lowering: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> StageReport:
    """Say where accuracy goes: quantize a model, and compare each stage of its way with float.

    The stages are the model as the backend rewrites it, with fake quantization where values were
    observed, converted, and executed. Where the program differs from the converted model, another
    one that returns the values of all modules, too, says which makes them differ. Where that one's
    outputs are others, the first wrong module is found by bisection, with programs that end there.

    Args:
        model: A ``torch.nn.Module`` in evaluation mode or an ``ExportedProgram``; never changed.
        quantizer: What to quantize.
        calibration_data: Samples to choose ranges with.
        evaluation_data: Samples to compare on; others than the first, or the figures flatter.
        algorithms: As for ``qcore.quantize``.
        execute: Whether to lower and run it, too.
        executed_modules: Whether to measure all modules as executed where the program does not
            differ, too, which takes another lowering.
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
        executed_modules=executed_modules,
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
    executed_modules: bool = False,
    least_db: float,
    lowering: Mapping[str, Any],
    quiet: bool,
) -> Compared:
    """Do the same as :func:`compare_stages`, and return what was made for it, too."""
    import qcore

    watch = _Watch()
    with step(f"{quantizer.name}: quantizing", quiet):
        acting, progress = [*algorithms, watch], bars(quiet)
        result = qcore.quantize(
            model, quantizer, calibration_data, algorithms=acting, progress=progress
        )
    converted = result.model
    with step(f"{quantizer.name}: comparing the stages", quiet) as over:
        way = _Way.of(model, watch, converted, samples, over)
        records = way.eager_records(least_db)
    program, outputs = None, None
    if execute:
        with step(f"{quantizer.name}: lowering", quiet):
            example = as_example(samples[0])
            program = quantizer.lower(converted, example, progress=progress, **lowering)
        try:
            with step(f"{quantizer.name}: executing", quiet) as over:
                outputs = executed(program, samples, over)
        except RuntimeUnavailableError as error:
            records.append(StageRecord(EXECUTED, note=f"not executed: {error}"))
        else:
            execution = Execution(
                converted,
                quantizer,
                lowering,
                way.anchors,
                samples,
                outputs,
                way.float_values,
                least_db,
                quiet,
            )
            records.append(way.executed_record(execution, executed_modules))
    report = StageReport(quantizer.name, len(samples), least_db, tuple(records))
    return Compared(report, result, program, outputs, way.float_values)


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
        transformed: The float model as the backend rewrites it.
        references: The float model's output for each sample.
        found: Name, outputs, and distances by anchor of each stage.
    """

    anchors: tuple[Anchor, ...]
    transformed: GraphModule
    references: list[list[Any]]
    found: list[tuple[str, list[list[Any]], dict[str, ModuleDistances]]]

    @classmethod
    def of(
        cls,
        model: Any,
        watch: _Watch,
        converted: GraphModule,
        samples: Sequence[Any],
        over: Over,
    ) -> _Way:
        transformed, prepared = watch.transformed, watch.prepared
        assert transformed is not None
        assert prepared is not None
        anchors = anchors_of(transformed)
        names = frozenset(anchor.node for anchor in anchors)
        with taken_by_the_model(0):
            captured = _captured(model, samples[0])
        counterparts = float_counterparts(captured, anchors)
        graphs = {"transformed": transformed, "fake-quantized": prepared, "converted": converted}
        distances = {name: {a.node: ModuleDistances() for a in anchors} for name in graphs}
        outputs: dict[str, list[list[Any]]] = {name: [] for name in ("float", *graphs)}
        way = cls(anchors, transformed, outputs["float"], [])
        for index, sample in enumerate(over(samples)):
            source = Trace(captured, frozenset(counterparts.values()))
            with taken_by_the_model(index):
                outputs["float"].append(source.of(flat_inputs(captured, sample)))
            originals = {node: source.values[name] for node, name in counterparts.items()}
            before, references = originals, way.float_values(sample)
            for name, graph in graphs.items():
                own = originals if graph is transformed else references
                inputs, rounds = flat_inputs(graph, sample), graph is prepared
                with_inherited = Trace(graph, names, rounds=rounds)
                outputs[name].append(with_inherited.of(inputs))
                alone = Trace(graph, names, rounds=rounds, references=own)
                alone.of(inputs)
                values = with_inherited.values
                for node, found in distances[name].items():
                    if node in own and _fits(own[node], values.get(node)):
                        found.to_float.add(own[node], values[node])
                        found.made_here.add(own[node], alone.values[node])
                        found.computed.add(own[node], alone.computed[node])
                        if _fits(before.get(node), values[node]):
                            found.to_before.add(before[node], values[node])
                before = values
        way.found = [(name, outputs[name], distances[name]) for name in graphs]
        return way

    def float_values(self, sample: Any) -> dict[str, torch.Tensor]:
        """Return what the modules have in float, by their nodes."""
        reference = Trace(self.transformed, frozenset(anchor.node for anchor in self.anchors))
        reference.of(flat_inputs(self.transformed, sample))
        return reference.values

    def eager_records(self, least_db: float) -> list[StageRecord]:
        """Return the stages that run in PyTorch."""
        records, before = [], self.references
        for name, outputs, distances in self.found:
            least = SAME_NUMERICS_DB if name == "transformed" else least_db
            modules = tuple(
                ModuleRecord.of(anchor, found, least)
                for anchor in self.anchors
                for found in (distances[anchor.node],)
                if found.to_float.signal or found.to_float.noise
            )
            records.append(_record(name, self.references, before, outputs, modules=modules))
            before = outputs
        return records

    def executed_record(self, execution: Execution, every_module: bool) -> StageRecord:
        """Return the stage that a runtime executes, with its modules where they are wanted."""
        converted = self.found[-1][1]
        outputs = [tree_leaves(output) for output in execution.outputs]
        to_converted = distance_of(converted, outputs).sqnr_db
        differs = to_converted < execution.least_db
        note, modules = execution.modules(differs) if differs or every_module else ("", ())
        if differs:
            said = f"the program differs from the converted model ({to_converted:.1f} dB)"
            note = "; ".join(filter(None, (said, note)))
        return _record(EXECUTED, self.references, converted, outputs, note, modules)


def _captured(model: Any, sample: Any) -> GraphModule:
    if not isinstance(model, torch.nn.Module):
        return cast(GraphModule, model.module(check_guards=False))
    keywords = sample if isinstance(sample, Mapping) else None
    with quiet_libraries():
        exported = torch.export.export(model, () if keywords else as_example(sample), keywords)
    return cast(GraphModule, exported.module(check_guards=False))


def _fits(reference: Any, value: Any) -> bool:
    tensors = isinstance(reference, torch.Tensor) and isinstance(value, torch.Tensor)
    return tensors and reference.shape == value.shape


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
