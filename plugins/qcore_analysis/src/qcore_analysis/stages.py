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
from qcore_analysis.bisection import wrong_module
from qcore_analysis.measures import Distance, distance_of
from qcore_analysis.samples import as_example, executed, taken_by_the_model
from qcore_analysis.stage_report import ModuleRecord, StageRecord, StageReport
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
            records.append(StageRecord("executed", note=f"not executed: {error}"))
        else:

            def find() -> Anchor | None:
                with step(f"{quantizer.name}: finding the module that differs", quiet) as over:
                    return wrong_module(
                        converted, quantizer, way.anchors, samples[:2], least_db, lowering, over
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
        distances: dict[str, dict[str, tuple[Distance, Distance]]] = {
            name: {anchor.node: (Distance(), Distance()) for anchor in anchors} for name in graphs
        }
        outputs: dict[str, list[list[Any]]] = {name: [] for name in ("float", *graphs)}
        for index, sample in enumerate(over(samples)):
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
