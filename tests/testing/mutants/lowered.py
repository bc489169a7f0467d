"""Defects in what is lowered, on a compiler of others."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch

import qcore
from qcore.lowering import LoweredProgram
from qcore_portable import SCHEMES, PortableBackend

from .defects import calls, caught_by

aten = torch.ops.aten


def lowered(self: Any, program: Any) -> LoweredProgram:
    return PortableBackend.lower(self, program, {})


@caught_by(calls("lower_refuses_unknown_options"), "an unknown option of lower was accepted")
class IgnoresOptionsOfLower(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        return lowered(self, program)


@caught_by(
    calls("lower_returns_a_program_with_a_report"),
    "reading the program's buffer raised .*truncated",
)
class CutsTheProgramShort(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, buffer=whole.buffer[:-64])


@caught_by(
    calls("the_report_names_what_is_not_delegated"),
    r"calls quantized_decomposed.\w+ \d times outside any delegate, and the report names 0 of them",
)
class HidesStrayNodes(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, report=attrs.evolve(whole.report, stray=()))


@caught_by(calls("a_saved_program_is_read_back"), r"suffix '.bin', and their format says '.pte'")
class NamesAnotherSuffix(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        return attrs.evolve(lowered(self, program), suffix=".bin")


@caught_by(calls("lower_returns_a_program_with_a_report"), "its report for 'xnnpack'")
class SignsWithAnotherName(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        whole = lowered(self, program)
        return attrs.evolve(whole, report=attrs.evolve(whole.report, backend="xnnpack"))


@caught_by(calls("lower_keeps_the_model"), "lower changes the converted model of linear")
class LowersInPlace(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        for tensor in (*program.state_dict.values(), *program.constants.values()):
            if tensor.dtype == torch.int8:
                tensor.neg_()
        return lowered(self, program)


@caught_by(
    calls("program_of_a_declared_scheme", SCHEMES[0], models=["linear"]),
    "the program of 8a8w static per-channel differs from the converted model by more than rounding",
)
class LowersWithAWrongScale(PortableBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        target = torch.ops.quantized_decomposed.dequantize_per_tensor.default
        for node in program.graph.nodes:
            if node.target is target:
                node.args = (node.args[0], node.args[1] * 1.1, *node.args[2:])
        program.graph_module.recompile()
        return lowered(self, program)


@caught_by(
    calls("a_program_that_does_not_run_here_says_so"),
    "program.run, which the requirements say does not work here was accepted",
)
class SaysThatNothingRunsHere(PortableBackend):
    conformance: ClassVar = {"delegates": False, "runs": False}


@caught_by(calls("quantized_operators_are_delegated"), "nothing of linear is in a delegate")
class SaysThatItDelegates(PortableBackend):
    conformance: ClassVar = {"delegates": True}


class Edits(PortableBackend):
    """Edits the nodes of some operators before they are lowered."""

    targets: ClassVar[tuple[Any, ...]] = ()

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        for node in list(program.graph.nodes):
            if node.target in self.targets:
                self.edit(program.graph, node)
        program.graph_module.recompile()
        return lowered(self, program)

    def edit(self, graph: Any, node: Any) -> None:
        raise NotImplementedError


def executes(*models: str) -> Any:
    return calls("every_quantized_model_is_executed", SCHEMES[0], models=models)


@caught_by(
    executes("conv2d, relu", "conv2d, relu6"),
    r"more than rounding: conv2d, relu \(.*conv2d, relu6 \(",
)
class DropsClampsOfConvolutions(Edits):
    targets: ClassVar = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)

    def edit(self, graph: Any, node: Any) -> None:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


@caught_by(
    executes("max_pool2d, below zero, padded"),
    r"more than rounding: max_pool2d, below zero, padded \(",
)
class PadsPoolsWithZero(Edits):
    targets: ClassVar = (aten.max_pool2d.default,)

    def edit(self, graph: Any, node: Any) -> None:
        with graph.inserting_before(node):
            padded = graph.call_function(aten.constant_pad_nd.default, (node.args[0], [1] * 4))
        size = list(node.args[0].meta["val"].shape)
        padded.meta["val"] = (
            node.args[0].meta["val"].new_empty([*size[:2], size[2] + 2, size[3] + 2])
        )
        node.args = (padded, *node.args[1:3])


@caught_by(
    executes("adaptive_avg_pool2d, to 2 by 2"),
    r"more than rounding: adaptive_avg_pool2d, to 2 by 2 \(",
)
class TurnsAveragesAround(Edits):
    targets: ClassVar = (aten.adaptive_avg_pool2d.default,)

    def edit(self, graph: Any, node: Any) -> None:
        with graph.inserting_before(node):
            turned = graph.call_function(aten.flip.default, (node.args[0], [2]))
        turned.meta["val"] = node.args[0].meta["val"]
        node.args = (turned, *node.args[1:])
