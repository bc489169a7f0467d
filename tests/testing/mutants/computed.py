"""Defects in what a compiler and an interpreter of one's own compute, return and report."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import numpy as np
import torch

import qcore
from qcore.lowering import Latency, LoweredProgram
from qcore_integer import interpreter
from qcore_integer.backend import SCHEMES, IntegerBackend

from .defects import calls, caught_by

Program = dict[str, Any]


@attrs.frozen
class InProcess:
    """Executes programs here, which is faster than a process for each."""

    backend: Any

    def needs(self) -> dict[str, Any]:
        return {}

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Any]:
        with np.load(io.BytesIO(buffer)) as archive:
            constants = dict(archive)
        program = json.loads(str(constants.pop("program")))
        self.backend.edit(program, constants)

        def execute(inputs: Sequence[Any]) -> list[Any]:
            return interpreter.execute(program, constants, [x.numpy() for x in inputs])

        yield self.backend.sessions(execute)


class Runs:
    """A session as it should be."""

    def __init__(self, execute: Callable[..., list[Any]]) -> None:
        self.execute = execute

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        return tuple(map(torch.from_numpy, self.execute(inputs)))

    def benchmark(self, inputs: Any, *, warmup: int, runs: int, method: str = "") -> Latency:
        return Latency.of([0.001] * runs)


class IntactBackend(IntegerBackend):
    """The example, executed here."""

    sessions: ClassVar[type] = Runs

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> LoweredProgram:
        return self.spoiled(IntegerBackend.lower(self, program, options))

    def spoiled(self, program: LoweredProgram) -> LoweredProgram:
        return attrs.evolve(program, runner=InProcess(self))

    def edit(self, program: Program, constants: dict[str, Any]) -> None:
        """Change the steps of a program that was read."""


def executes(*models: str) -> Any:
    return calls("every_quantized_model_is_executed", SCHEMES[0], models=models)


# What the compiler writes into steps.


def steps(program: Program, operator: str) -> Iterator[Any]:
    return (step for step in program["steps"] if step["op"] == operator)


def miscompiled(
    name: str, models: Sequence[str], operator: str, change: Callable[..., Any]
) -> None:
    """Plant a defect in the steps of an operator, which the first of some models shows."""

    def edit(self: Any, program: Program, constants: dict[str, Any]) -> None:
        for step in steps(program, operator):
            change(step, constants)

    backend = type(name, (IntactBackend,), {"edit": edit})
    caught_by(executes(*models), f"by more than rounding: {models[0]} \\(")(backend)


CONV, LINEAR = "aten.conv2d.default", "aten.linear.default"
QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_DEFAULTS = [None, [1, 1], [0, 0], [1, 1], 1]


def argument(index: int, change: Callable[[Any], Any]) -> Callable[..., None]:
    """Change an argument of convolutions: bias 2, stride 3, padding 4, dilation 5, groups 6."""

    def edit(step: Any, constants: Any) -> None:
        args = step["args"]
        args += _DEFAULTS[len(args) - 2 :]
        args[index] = change(args[index])

    return edit


def set_argument(index: int, value: Callable[[Any], Any]) -> Callable[..., None]:
    def edit(step: Any, constants: Any) -> None:
        step["args"][index] = value(step["args"])

    return edit


def integer(**changes: Any) -> Callable[..., None]:
    """Change how integers are scaled; what is callable gets the value there is."""

    def edit(step: Any, constants: Any) -> None:
        how = step["integer"]
        for key, value in changes.items() if how else ():
            how[key] = value(how[key]) if callable(value) else value

    return edit


def constant(index: int, change: Callable[[Any], Any]) -> Callable[..., None]:
    """Change a constant that is an argument."""

    def edit(step: Any, constants: dict[str, Any]) -> None:
        if isinstance(step["args"][index], dict) and "constant" in step["args"][index]:
            key = str(step["args"][index]["constant"])
            constants[key] = np.ascontiguousarray(change(constants[key]))

    return edit


def first_channel(step: Any, constants: dict[str, Any]) -> None:
    for factor in step["integer"]["factors"]:
        key = str(factor["constant"])
        constants[key] = np.broadcast_to(constants[key].flat[0], constants[key].shape)


def quantizing(index: int, change: Callable[[Any], Any]) -> Callable[..., None]:
    def edit(step: Any, constants: Any) -> None:
        if not step["integer"]:
            step["args"][index] = change(step["args"][index])

    return edit


WIDE = {"low": -(1 << 40), "high": 1 << 40}
STRIDED, SKEWED = "conv2d, stride 2, padded", "conv2d, stride 2 by 1"

for name, models, operator, change in (
    ("IgnoresStrides", [STRIDED], CONV, argument(3, lambda _: [1, 1])),
    ("IgnoresTheSecondStride", [SKEWED], CONV, argument(3, lambda s: [s[0], s[0]])),
    ("SwapsStrides", [SKEWED], CONV, argument(3, lambda s: s[::-1])),
    ("IgnoresPadding", [STRIDED], CONV, argument(4, lambda _: [0, 0])),
    (
        "SwapsPadding",
        ["conv2d, stride 1 by 2, padding 1 by 0"],
        CONV,
        argument(4, lambda p: p[::-1]),
    ),
    ("IgnoresDilation", ["conv2d, dilated"], CONV, argument(5, lambda _: [1, 1])),
    (
        "SwapsDilation",
        ["conv2d, dilation 1 by 2, padded"],
        CONV,
        argument(5, lambda d: d[::-1]),
    ),
    ("DropsTheBiasOfConvolutions", ["conv2d"], CONV, argument(2, lambda _: None)),
    ("DropsTheBiasOfLinearLayers", ["linear"], LINEAR, set_argument(2, lambda args: None)),
    ("TurnsKernelsAround", ["conv2d"], CONV, constant(1, lambda w: w[..., ::-1, ::-1])),
    ("TransposesKernels", ["conv2d"], CONV, constant(1, lambda w: w.swapaxes(-1, -2))),
    ("ShufflesGroups", ["conv2d, grouped"], CONV, constant(1, lambda w: np.roll(w, 4, 0))),
    ("MixesUpOutputChannels", ["conv2d"], CONV, constant(1, lambda w: w[::-1])),
    ("NegatesWeights", ["linear"], LINEAR, constant(1, lambda w: -w)),
    ("UsesTheScaleOfTheFirstChannel", ["conv2d"], CONV, first_channel),
    ("IgnoresTheZeroPointOfInputs", ["linear"], LINEAR, integer(zeros=lambda z: [0] * len(z))),
    ("IgnoresTheZeroPointOfOutputs", ["linear"], LINEAR, integer(zero=0)),
    ("ShiftsByOneMore", ["linear"], LINEAR, integer(shift=lambda shift: shift + 1)),
    ("WrapsConvolutions", ["conv2d"], CONV, integer(**WIDE)),
    ("WrapsLinearLayers", ["linear"], LINEAR, integer(**WIDE)),
    ("WrapsAdditions", ["add"], "aten.add.Tensor", integer(**WIDE)),
    (
        "WrapsInputs",
        ["linear"],
        QUANTIZE,
        lambda s, c: s["args"].__setitem__(slice(3, 5), [-(1 << 30), 1 << 30]),
    ),
    ("DropsReluOfConvolutions", ["conv2d, relu"], CONV, integer(low=-128)),
    ("DropsReluOfLinearLayers", ["linear, relu"], LINEAR, integer(low=-128)),
    ("DropsReluOfAdditions", ["add, relu"], "aten.add.Tensor", integer(low=-128)),
    ("CutsOffTheUpperHalf", ["conv2d"], CONV, integer(high=0)),
    (
        "AddsWithOneScale",
        ["residual_add"],
        "aten.add.Tensor",
        integer(factors=lambda f: [f[0]] * len(f)),
    ),
    (
        "IgnoresZeroPointsOfProducts",
        ["mul"],
        "aten.mul.Tensor",
        integer(zeros=lambda z: [0] * len(z)),
    ),
    ("QuantizesInputsCoarsely", ["linear"], QUANTIZE, quantizing(1, lambda scale: scale * 2)),
    ("MovesInputsByTenLevels", ["linear"], QUANTIZE, quantizing(2, lambda zero: zero + 10)),
    ("DequantizesWithAnotherScale", ["linear"], DEQUANTIZE, quantizing(1, lambda s: s * 1.05)),
    ("DequantizesWithAnotherZeroPoint", ["linear"], DEQUANTIZE, quantizing(2, lambda z: z + 4)),
):
    miscompiled(name, models, operator, change)


# What the runner does.


def running(check: Any, says: str) -> Callable[[type], type]:
    """Plant a session in a backend."""

    def add(session: type) -> type:
        caught_by(check, says)(type(session.__name__, (IntactBackend,), {"sessions": session}))
        return session

    return add


EARLIER = calls("results_do_not_depend_on_earlier_runs")


@running(executes("linear"), r"by more than rounding: linear \(.* on inputs")
class ReturnsTheFirstResultForEver(Runs):
    first: Any = None

    def run(self, inputs: Any, **how: Any) -> Any:
        self.first = self.first or super().run(inputs)
        return self.first


@running(EARLIER, "of a session, on inputs .*, gives other values than the same inputs")
class ReturnsTheResultBefore(Runs):
    last: Any = None

    def run(self, inputs: Any, **how: Any) -> Any:
        result, self.last = self.last, super().run(inputs)
        return result or self.last


@running(EARLIER, "of a session, on inputs .*, gives other values than the same inputs")
class AddsUpResults(Runs):
    total = 0

    def run(self, inputs: Any, **how: Any) -> Any:
        self.total += 1
        return tuple(x * self.total for x in super().run(inputs))


@running(EARLIER, "a session of a program raised RuntimeError: once")
class RunsOnce(Runs):
    done = False

    def run(self, inputs: Any, **how: Any) -> Any:
        if self.done:
            raise RuntimeError("once")
        self.done = True
        return super().run(inputs)


@running(executes("conv2d, relu"), r"by more than rounding: conv2d, relu \(")
class RepeatsTheFirstOfABatch(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        return tuple(x[:1].expand_as(x).clone() for x in super().run(inputs))


@running(executes("linear"), r"linear \(torch.float64 in place of torch.float32\)")
class ReturnsDoubles(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        return tuple(x.double() for x in super().run(inputs))


@running(executes("linear"), r"linear \(float32\[16\] in place of float32\[2, 8\]\)")
class ReturnsFlatTensors(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        return tuple(x.flatten() for x in super().run(inputs))


@running(executes("linear", "conv2d"), r"by more than rounding: linear \(")
class ReturnsOutputsInAnotherOrder(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        return super().run(inputs)[::-1]


@running(executes("linear"), r"linear \(not finite where the converted model is")
class ReturnsNotANumber(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        return tuple(torch.where(x > x.mean(), torch.nan, x) for x in super().run(inputs))


@running(executes("linear"), r"by more than rounding: linear \(.* on inputs of zeros")
class TakesZerosForNoInput(Runs):
    def run(self, inputs: Any, **how: Any) -> Any:
        found = super().run(inputs)
        return found if any(x.any() for x in inputs) else tuple(x + 1 for x in found)


@running(calls("a_program_can_be_timed"), "benchmark of a program raised TypeError")
class CannotBeTimed(Runs):
    def benchmark(self, inputs: Any, *, warmup: int, runs: int, method: str = "") -> Latency:
        raise TypeError("'NoneType' object is not iterable")


@running(calls("a_program_can_be_timed"), r"benchmark\(runs=3\) reports 4 runs")
class TimesTheWarmUp(Runs):
    def benchmark(self, inputs: Any, *, warmup: int, runs: int, method: str = "") -> Latency:
        return Latency.of([0.001] * (warmup + runs))


# What a program says of itself.


def evolved(**changes: Callable[[Any], Any]) -> Any:
    """Change what a program holds, each by a function of the program."""

    def spoiled(self: Any, program: LoweredProgram) -> LoweredProgram:
        program = attrs.evolve(program, runner=InProcess(self))
        return attrs.evolve(program, **{k: change(program) for k, change in changes.items()})

    return spoiled


def told(**changes: Callable[[Any], Any]) -> Any:
    """Change what a report says, each by a function of the report."""
    return evolved(
        report=lambda program: attrs.evolve(
            program.report, **{k: change(program.report) for k, change in changes.items()}
        )
    )


@caught_by(executes("outputs in a dict"), "a program returns .*, its model .*out_spec")
class LosesTheStructure(IntactBackend):
    spoiled = evolved(structure=lambda program: None)


def stamped(program: LoweredProgram) -> bytes:
    buffer = io.BytesIO(program.buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo("stamp.npy"), os.urandom(8))
    return buffer.getvalue()


@caught_by(
    calls("lower_gives_the_same_program_every_time"),
    "lowering linear a second time gives another program, from byte .* Write no time",
)
class StampsPrograms(IntactBackend):
    spoiled = evolved(buffer=stamped)


@caught_by(calls("every_node_is_reported_once"), "the report names linear more than once")
class ListsDelegatedNodesTwice(IntactBackend):
    spoiled = told(delegated=lambda report: report.delegated * 2)


@caught_by(calls("every_node_is_reported_once"), "linear has 1 layers, and the report names 0")
class ListsNoDelegatedNodes(IntactBackend):
    spoiled = told(delegated=lambda report: ())


@caught_by(calls("the_report_names_what_is_not_delegated"), "the report names 0 of them")
class ListsNoUndelegatedNodes(IntactBackend):
    spoiled = told(undelegated=lambda report: (), stray=lambda report: ())


@caught_by(calls("lower_returns_a_program_with_a_report"), "the report says 7 bytes")
class MiscountsBytes(IntactBackend):
    spoiled = told(program_bytes=lambda report: 7)


@caught_by(calls("lower_returns_a_program_with_a_report"), "complete=False")
class SaysThatItsReportIsIncomplete(IntactBackend):
    spoiled = told(complete=lambda report: False)


@caught_by(calls("lower_returns_a_program_with_a_report"), "the program says it is for 'other'")
class IsForAnotherBackend(IntactBackend):
    spoiled = evolved(backend=lambda program: "other")


@caught_by(calls("a_program_refuses_inputs_that_do_not_fit"), "raised ValueError|was accepted")
class TakesInputsOfAnyShape(IntactBackend):
    spoiled = evolved(inputs=lambda program: None)


@caught_by(executes("dropout in evaluation", "linear"), r"at fault: dropout in evaluation, alone")
class CrashesOnDropout(IntactBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> LoweredProgram:
        if any("dropout" in str(node.target) for node in program.graph.nodes):
            raise KeyError("aten.dropout.default")
        return self.spoiled(IntegerBackend.lower(self, program, options))


@caught_by(calls("sizes_that_vary"), "quantizing and lowering a model with sizes that vary raised")
class RefusesSizesThatVary(IntactBackend):
    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> LoweredProgram:
        inputs = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder")]
        if not all(isinstance(size, int) for value in inputs for size in value.shape):
            raise qcore.errors.LoweringError("sizes are fixed")
        return self.spoiled(IntegerBackend.lower(self, program, options))
