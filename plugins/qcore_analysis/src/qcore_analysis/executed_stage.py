"""The modules of the stage that a runtime executes, which by itself gives outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from qcore.cli.progress import step
from qcore.errors import QcoreError
from qcore_analysis.bisection import ends_of, returning, wrong_module
from qcore_analysis.measures import distance_of
from qcore_analysis.samples import as_example, called
from qcore_analysis.stage_report import ModuleDistances, ModuleRecord
from qcore_analysis.tracing import Anchor, Trace, flat_inputs

if TYPE_CHECKING:
    from qcore import LoweredProgram, Quantizer

__all__ = ["Execution"]

#: Samples that programs which end at one module run on.
_FEW: Final = 2


@attrs.frozen
class Execution:
    """A program, what it was made of and what it gave.

    Attributes:
        converted: The converted model.
        quantizer: Lowers it.
        lowering: Options for that.
        anchors: Its modules, in the order of the graph.
        samples: The inputs.
        outputs: What the program gave for each.
        float_values: Gives what the modules have in float for a sample, by their nodes.
        least_db: The SQNR below which a difference is too large.
        quiet: Whether to show no stages on a terminal.
    """

    converted: GraphModule
    quantizer: Quantizer
    lowering: Mapping[str, Any]
    anchors: tuple[Anchor, ...]
    samples: list[Any]
    outputs: list[Any]
    float_values: Callable[[Any], Mapping[str, torch.Tensor]]
    least_db: float
    quiet: bool

    def modules(self, differs: bool) -> tuple[str, tuple[ModuleRecord, ...]]:
        """Look into the program: another one returns what its modules give, too.

        Where that one's outputs are not those of the first to the bit, its modules say nothing of
        the first one's. Then programs that end at single modules find the first that is wrong.

        Args:
            differs: Whether the program's outputs are too far from the converted model's.

        Returns:
            A note, and the modules with their figures.
        """
        ends = ends_of(self.converted, self.anchors)
        try:
            note, records = self._all_at_once(ends)
            if differs and (note or not records):
                note, records = self._by_bisection(ends)
        except QcoreError as error:
            return f"no program gives values of modules out: {error}", ()
        return note, records

    def _all_at_once(self, ends: list[Anchor]) -> tuple[str, tuple[ModuleRecord, ...]]:
        names = [end.node for end in ends]
        found = {name: ModuleDistances() for name in names}
        firsts, seconds = [], []
        with step(f"{self.quantizer.name}: executing module by module", self.quiet) as over:
            program = self._lowered(returning(self.converted, ends, outputs=True))
            with program.session() as run:
                for sample, output in zip(over(self.samples), self.outputs, strict=True):
                    returned = tree_leaves(called(run, sample))
                    executed = dict(zip(names, returned, strict=False))
                    firsts.append(tree_leaves(output))
                    seconds.append(returned[len(names) :])
                    self._add(sample, executed, found)
        records = tuple(ModuleRecord.of(end, found[end.node], self.least_db) for end in ends)
        apart = distance_of(firsts, seconds)
        if apart.noise == 0:
            return "", records
        return (
            "figures of modules are those of a program that returns their values and gives "
            f"something else ({apart.sqnr_db:.1f} dB between both)",
            records,
        )

    def _add(
        self, sample: Any, executed: dict[str, torch.Tensor], found: dict[str, ModuleDistances]
    ) -> None:
        inputs, names = flat_inputs(self.converted, sample), frozenset(executed)
        converted = Trace(self.converted, names)
        converted.of(inputs)
        # What each module of the converted model makes of what the runtime feeds it with.
        due = Trace(self.converted, names, references=executed)
        due.of(inputs)
        floats = self.float_values(sample)
        for name, value in executed.items():
            found[name].to_float.add(floats[name], value)
            found[name].to_before.add(converted.values[name], value)
            found[name].made_here.add(due.values[name], value)

    def _by_bisection(self, ends: list[Anchor]) -> tuple[str, tuple[ModuleRecord, ...]]:
        few, outputs = self.samples[:_FEW], self.outputs[:_FEW]
        with step(f"{self.quantizer.name}: finding the module that differs", self.quiet) as over:
            wrong, probes = wrong_module(
                self.converted, self._lowered, ends, few, outputs, self.least_db, over
            )
        floats = [self.float_values(sample) for sample in few]
        records = []
        for probe in probes:
            to_float = distance_of([values[probe.anchor.node] for values in floats], probe.actual)
            to_before = distance_of(probe.expected, probe.actual)
            # Where all before it is right, what differs is made in it; of others nobody knows.
            distances, is_it = (
                ModuleDistances(to_float, to_before, to_before),
                probe.anchor == wrong,
            )
            records.append(ModuleRecord.of(probe.anchor, distances, self.least_db, knows_own=is_it))
        where = f"before {wrong.module}" if wrong else "at single modules"
        return f"programs that end {where} do not", tuple(records)

    def _lowered(self, model: GraphModule) -> LoweredProgram:
        example = as_example(self.samples[0])
        return self.quantizer.lower(model, example, progress=False, **self.lowering)
