"""Programs are executed when they are made; what a delegate gets wrong is found and left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import jsonschema
import pytest
import torch

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, Session, TensorSpec, export_for_lowering
from qcore.report import schema
from qcore.testing import Rounding
from qcore_executorch import (
    ExecuTorchLowering,
    ExecuTorchReport,
    ExecuTorchRunner,
    import_executorch,
    mending,
)
from qcore_executorch.check import Reference, example_inputs
from qcore_executorch.inspection import computes, inspect_lowered
from qcore_executorch.mending import Attempt, search

from .conftest import runner_with, xnnpack_partitioner

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
OPERATORS = ("abs", "mul", "sigmoid", "add", "tanh", "sub", "neg", "maximum")
BUDGET = math.ceil(math.log2(len(OPERATORS))) + 2


class Chain(torch.nn.Module):
    """Eight operators that XNNPACK takes, in one delegate."""

    def forward(self, x):
        y = x.abs() * x
        y = torch.tanh(torch.sigmoid(y) + x)
        return torch.maximum(-(y - x), x)


@attrs.define
class Counting(ExecuTorchLowering):
    """Counts how often a model is lowered."""

    lowerings: int = attrs.field(default=0, init=False)

    def rewritten(self, program):
        self.lowerings += 1
        return program


@attrs.define
class Planted:
    """A fault in the delegate of XNNPACK, where it holds an operator."""

    operator: str
    fault: Callable[[Any], None]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = import_executorch("executorch.backends.xnnpack.xnnpack_preprocess")
        right = module.XnnpackBackend.preprocess

        def preprocess(edge_program, compile_specs):
            for node in edge_program.graph.nodes:
                if node.op == "call_function" and self.operator in str(node.target):
                    self.fault(node)
            return right(edge_program, compile_specs)

        monkeypatch.setattr(module.XnnpackBackend, "preprocess", staticmethod(preprocess))


class DyingRunner(ExecuTorchRunner):
    """A runtime that is killed by programs with one operator in a delegate."""

    deadly = False

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Session]:
        runner = runner_with("child_dies") if DyingRunner.deadly else self
        DyingRunner.deadly = False
        with ExecuTorchRunner.session(runner, buffer) as session:
            yield session


def exported(model: torch.nn.Module, *inputs: Any) -> Any:
    return export_for_lowering(torch.export.export(model, inputs), inputs)


def lowered(model: torch.nn.Module, *inputs: Any, runner: Any = None) -> tuple[Any, Counting]:
    runner = runner or ExecuTorchRunner(backends=("XnnpackBackend",))
    lowering = Counting("xnnpack", [xnnpack_partitioner()], runner, check=True)
    return lowering.lower(exported(model, *inputs)), lowering


def swap_operands(node: Any) -> None:
    node.args = tuple(reversed(node.args))


def kill(node: Any) -> None:
    DyingRunner.deadly = True


def refuse(node: Any) -> None:
    raise RuntimeError(f"cannot build {node}")


def names(program: LoweredProgram) -> list[str]:
    return [node.name for node in program.report.mended]


@pytest.mark.parametrize(
    ("fault", "symptom"),
    [
        (swap_operands, "dB to the converted model"),
        (kill, "SIGSEGV in XnnpackBackend"),
        (refuse, "RuntimeError: cannot build aten_sub_tensor"),
    ],
)
def test_a_planted_fault_is_found_and_mended(monkeypatch, fault, symptom):
    Planted("aten.sub", fault).install(monkeypatch)
    program, lowering = lowered(Chain(), X, runner=DyingRunner(backends=("XnnpackBackend",)))
    (mended,) = program.report.mended
    assert (mended.name, mended.operator) == ("sub", "aten.sub.Tensor")
    assert symptom in mended.symptom
    assert "Replace" not in mended.symptom
    assert lowering.lowerings <= BUDGET
    assert program.report.checked.endswith(f"found by {lowering.lowerings} lowerings")
    torch.testing.assert_close(program.run(X), Chain()(X))


def test_what_was_mended_is_in_the_report(monkeypatch):
    Planted("aten.sub", refuse).install(monkeypatch)
    report = lowered(Chain(), X)[0].report
    (node,) = report.undelegated
    assert (node.operator, node.reason) == ("aten.sub.Tensor", report.mended[0].symptom)
    assert "left to portable kernels, wrong in the delegate: sub" in str(report)
    assert report.to_dict()["mended"][0]["name"] == "sub"
    jsonschema.validate(report.to_dict(), schema(ExecuTorchReport))
    assert ExecuTorchReport.from_dict(report.to_dict()) == report
    assert {"check", "mend"} <= report.seconds.keys()


def test_two_culprits_are_found(monkeypatch):
    Planted("aten.sub", refuse).install(monkeypatch)
    Planted("aten.abs", swap_nothing_but_fail).install(monkeypatch)
    program, _ = lowered(Chain(), X)
    assert sorted(names(program)) == ["abs_1", "sub"]


def swap_nothing_but_fail(node: Any) -> None:
    raise RuntimeError(f"cannot build {node}, either")


def test_a_program_that_is_right_is_lowered_once():
    program, lowering = lowered(Chain(), X)
    assert lowering.lowerings == 1
    assert program.report.mended == ()
    assert program.report.checked == "executed once and compared with the converted model"


def test_the_check_changes_no_byte():
    unchecked = ExecuTorchLowering("xnnpack", [xnnpack_partitioner()])
    assert lowered(Chain(), X)[0].buffer == unchecked.lower(exported(Chain(), X)).buffer


def test_a_program_that_no_host_executes_says_so():
    lowering = ExecuTorchLowering("xnnpack", [xnnpack_partitioner()], check=True)
    report = lowering.lower(exported(Chain(), X)).report
    assert report.checked == "not executed: no runtime on this machine"


def test_an_operator_that_fails_without_delegates_is_an_error_that_names_it():
    class Spectrum(torch.nn.Module):
        def forward(self, x):
            return torch.fft.fft(x.abs()).real + 1

    with pytest.raises(LoweringError, match=r"fft.*Replace it in the model"):
        lowered(Spectrum(), X)


def test_an_operator_without_a_kernel_is_named_when_lowering():
    class Hypot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tail = torch.nn.Sequential(Tail())

        def forward(self, x):
            return self.tail(x) + 1

    class Tail(torch.nn.Module):
        def forward(self, x):
            return torch.hypot(x, x)

    unchecked = import_executorch().EdgeCompileConfig(_check_ir_validity=False)
    lowering = ExecuTorchLowering("mine", runner=ExecuTorchRunner(), compile_config=unchecked)
    with pytest.raises(LoweringError, match=r"no kernel for aten::hypot\.out.*in tail\.0"):
        lowering.lower(exported(Hypot(), X))


def test_search_takes_a_logarithm_of_the_nodes():
    for count in (1, 2, 3, 8, 13, 64):
        nodes = dict.fromkeys(map(str, range(count)))
        for culprit in nodes:
            calls = []

            def attempt(refused, culprit=culprit, calls=calls):
                calls.append(refused)
                return Attempt(symptom="" if refused is None or culprit in refused else "wrong")

            _, found = search(Attempt(symptom="wrong", taken=nodes), attempt)
            assert list(found) == [culprit]
            assert 1 + len(calls) <= math.ceil(math.log2(count)) + 2


def test_a_search_that_takes_too_long_ends_with_the_best_program_so_far():
    nodes = dict.fromkeys(map(str, range(64)))
    calls: list[Any] = []

    def attempt(refused):
        calls.append(refused)
        return Attempt(symptom="" if refused is None or "20" in refused else "wrong")

    right, refused = search(Attempt(symptom="wrong", taken=nodes), attempt, lambda: len(calls) > 1)
    assert (right.symptom, len(calls)) == ("", 2)
    assert list(refused) == [str(i) for i in range(32)]


def test_a_search_that_ended_early_is_in_the_report(monkeypatch):
    Planted("aten.sub", refuse).install(monkeypatch)
    monkeypatch.setattr(mending, "_LONGEST_S", 0.0)
    program, lowering = lowered(Chain(), X)
    assert lowering.lowerings == 2
    assert program.report.checked.endswith("was left to portable kernels")
    assert len(program.report.undelegated) == len(OPERATORS)
    torch.testing.assert_close(program.run(X), Chain()(X))


def test_a_size_is_no_operator_that_can_be_wrong():
    class Sized(torch.nn.Module):
        def forward(self, x):
            return x.sin().reshape(-1, x.shape[0])

    batch = torch.export.Dim("batch", min=1, max=4)
    program = torch.export.export(Sized(), (X,), dynamic_shapes=({0: batch},))
    nodes = [node.name for node in program.graph.nodes if computes(node)]
    assert nodes == ["sin", "reshape"]


def test_an_operator_that_writes_is_found_behind_the_one_that_makes_it_functional():
    with torch.library._scoped_library("qcore_test", "DEF") as library:
        library.define("bump(Tensor(a!) x) -> ()")
        library.impl("bump", lambda x: None, "CompositeExplicitAutograd")

        class Bumped(torch.nn.Module):
            def forward(self, x):
                y = x + 1
                torch.ops.qcore_test.bump(y)
                return y

        program = torch.export.export(Bumped(), (X,)).run_decompositions({})
        found = inspect_lowered(program.graph_module, {}).undelegated
    assert [node.operator for node in found] == ["aten.add.Tensor", "qcore_test.bump.default"]


@pytest.fixture
def reference() -> Reference:
    import_executorch("executorch.exir")

    class Rounded(torch.nn.Module):
        def forward(self, x):
            ops = torch.ops.quantized_decomposed
            whole = ops.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
            y = ops.dequantize_per_tensor.default(whole, 0.1, 0, -128, 127, torch.int8)
            return y, y.argmax(-1), y > 100

    program = torch.export.export(Rounded(), (X,))
    return Reference.of(program, [X])


def test_outputs_may_differ_by_rounding(reference):
    values, *others = reference.expected
    assert reference.difference([values + 0.1, *others]) == ""
    assert "dB" in reference.difference([values + 2, *others])


def test_a_value_that_is_far_off_is_a_difference(reference):
    values, *others = reference.expected
    off = values.clone()
    off[0, 0] += 1
    assert "dB" in reference.difference([off, *others])


def test_integers_and_booleans_are_equal(reference):
    values, index, above = reference.expected
    assert "2 of 2 values differ" in reference.difference([values, (index + 1) % 8, above])
    assert "16 of 16 values differ" in reference.difference([values, index, ~above])


def test_not_a_number_is_a_difference(reference):
    values, *others = reference.expected
    assert "not finite" in reference.difference([values * float("nan"), *others])


def test_another_shape_or_type_is_a_difference(reference):
    values, *others = reference.expected
    assert "float32[2, 7] in place of" in reference.difference([values[:, 1:], *others])
    assert "torch.float64 in place of" in reference.difference([values.double(), *others])


def test_what_float_arithmetic_leaves_of_a_difference_of_equal_values_may_be_anything():
    class Nothing(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.layer_norm(x, (8,)).mean(-1)

    reference = Reference.of(torch.export.export(Nothing(), (X,)), [X])
    (nothing,) = reference.expected
    assert reference.difference([nothing + 5e-8]) == ""
    assert "dB" in reference.difference([nothing + 1e-5])


def test_a_tie_that_few_disturbed_runs_break_the_other_way_is_rounding():
    expected = torch.ones(8)
    flipped = torch.tensor([2.0, *[1.0] * 7])
    reference = Rounding(lambda seed: [flipped if seed == 9 else expected], [expected], [0.0])
    assert reference.difference([flipped]) == ""
    assert "dB" in reference.difference([expected * 9])


def test_without_example_inputs_they_are_drawn():
    program = torch.export.export(Chain(), (X,))
    program.example_inputs = None
    specs = [TensorSpec("x", (None, 3), torch.float32, ((1, 8), (3, 3)))]
    assert example_inputs(program, specs)[0].shape == (1, 3)
