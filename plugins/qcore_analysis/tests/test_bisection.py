"""A wrong kernel inside a delegate is named, with few programs that end in the middle."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import numpy
import pytest
import torch

import qcore
from qcore import registry
from qcore.lowering import LoweredProgram, LoweringReport
from qcore.report import AnnotationReport
from qcore_analysis import StageReport, compare_stages
from qcore_analysis.bisection import ends_of, first_wrong, returning
from qcore_analysis.causes import cause_of
from qcore_analysis.making import Made
from qcore_analysis.page import write_html
from qcore_analysis.stages import compare
from qcore_analysis.tracing import Anchor, anchors_of
from qcore_integer import interpreter
from qcore_integer.backend import IntegerBackend


class Here:
    """Executes a program of the example backend in this process, and gives nothing but outputs."""

    def __init__(self, buffer: bytes = b"") -> None:
        self.buffer = buffer

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Any]:
        yield Here(buffer)

    def run(self, inputs: Any, *, method: str = "forward") -> tuple[Any, ...]:
        with numpy.load(io.BytesIO(self.buffer)) as archive:
            constants = dict(archive)
        program = json.loads(str(constants.pop("program")))
        outputs = interpreter.execute(program, constants, [x.numpy() for x in inputs])
        return tuple(map(torch.from_numpy, outputs))


class CountingBackend(IntegerBackend):
    """The example backend; counts what it lowers."""

    name: ClassVar[str] = "counting"
    lowered: ClassVar[list[int]] = []

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        made = IntegerBackend.lower(self, program, options)
        self.lowered.append(len(made.report.delegated))
        return attrs.evolve(made, runner=Here())


@pytest.fixture
def counting() -> Iterator[list[int]]:
    """Registers the backend; returns the count of delegated nodes of each program it lowered."""
    qcore.register_backend("counting", CountingBackend)
    CountingBackend.lowered.clear()
    yield CountingBackend.lowered
    registry.unregister_backend("counting")


def network() -> torch.nn.Module:
    """Thirteen modules that are eight steps; without biases no error gets small beside them."""
    torch.manual_seed(4)
    layers = [
        layer
        for _ in range(5)
        for layer in (torch.nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.nn.ReLU())
    ]
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4, bias=False))
    return torch.nn.Sequential(*layers, *head).eval()


SAMPLES = list(torch.rand(8, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))


def compared(**options: Any) -> StageReport:
    quantizer = qcore.get_quantizer("counting").set_global("8a8w")
    return compare_stages(network(), quantizer, SAMPLES[:4], SAMPLES[4:], least_db=10, **options)


def rolled(operator: str) -> Any:
    """A wrong kernel: channels are in the wrong places."""
    right = interpreter.KERNELS[operator]
    return lambda *args: numpy.roll(right(*args), 1, axis=1)


def quantized(model: torch.nn.Module) -> Any:
    quantizer = qcore.get_quantizer("counting").set_global("8a8w")
    return qcore.quantize(model, quantizer, SAMPLES).model


@pytest.mark.parametrize(
    ("operator", "module"),
    [("conv2d", "0"), ("adaptive_avg_pool2d", "10"), ("linear", "12")],
)
def test_a_wrong_kernel_inside_a_delegate_is_named_within_the_logarithm_of_lowerings(
    operator: str, module: str, counting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"aten.{operator}.default"
    monkeypatch.setitem(interpreter.KERNELS, name, rolled(name))
    report = compared()
    assert (report.first_stage, report.first_module) == ("executed", module)
    assert counting[0] == 13, "all is delegated"
    assert len(counting) <= math.ceil(math.log2(8)) + 1


def test_the_cause_of_what_a_wrong_kernel_loses_is_the_execution(
    counting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "aten.linear.default"
    monkeypatch.setitem(interpreter.KERNELS, name, rolled(name))
    found = compare(
        network(),
        qcore.get_quantizer("counting").set_global("8a8w"),
        SAMPLES[:4],
        SAMPLES[4:],
        algorithms=(),
        execute=True,
        least_db=10,
        lowering={},
        quiet=True,
    )
    assert cause_of(found, SAMPLES[4:]).startswith("the execution, which differs")


def test_a_wrong_module_has_figures_of_its_own_and_those_behind_it_inherit_its_error(
    counting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "aten.adaptive_avg_pool2d.default"
    monkeypatch.setitem(interpreter.KERNELS, name, rolled(name))
    executed = compared().stages[-1]
    modules = {record.module: record for record in executed.modules}
    assert list(modules) == ["0", "2", "4", "6", "8", "10", "11", "12"]
    assert modules["8"].before_db > 30, "all before it is right"
    assert modules["8"].sqnr_db < modules["8"].before_db, "float is further than the stage before"
    wrong, behind = modules["10"], modules["11"]
    assert wrong.diverges
    assert wrong.before_db == pytest.approx(wrong.made_here_db)
    assert wrong.before_db != pytest.approx(executed.before_db)
    assert (wrong.before_cosine < 0.99, wrong.before_max_abs_error > 0) == (True, True)
    assert behind.before_db == pytest.approx(wrong.before_db)
    assert behind.made_here_db > 30
    assert wrong.made_here_cosine == pytest.approx(wrong.before_cosine)
    assert wrong.made_here_max_abs_error == pytest.approx(wrong.before_max_abs_error)
    assert math.isnan(wrong.computed_db), "nobody knows it of what a runtime executes"


def test_the_page_has_the_figures_of_executed_modules(
    counting: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "aten.linear.default"
    monkeypatch.setitem(interpreter.KERNELS, name, rolled(name))
    made = Made(
        LoweredProgram(b"", "counting", LoweringReport("counting")),
        AnnotationReport("counting", ()),
        None,
        compared(),
    )
    recipe: Any = SimpleNamespace(to_toml=lambda: "")
    page = write_html(tmp_path / "page.html", "net", made, recipe, [], unseen=True)
    table = page.read_text(encoding="utf-8").partition('<table id="executed">')[2]
    rows = table.partition("</table>")[0].count("<tr") - 1
    assert (rows, table.count("too large")) == (8, 1)
    assert re.search(r'12 <b>.*too large</b></th><td class="n">-?\d\.\d dB', table)


def test_where_a_program_with_more_outputs_is_right_the_module_is_found_by_bisection(
    counting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, name = interpreter.execute, "aten.conv2d.default"

    def wrong_alone(program: Any, *data: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if len(program["outputs"]) == 1:
                patch.setitem(interpreter.KERNELS, name, rolled(name))
            return execute(program, *data)

    monkeypatch.setattr(interpreter, "execute", wrong_alone)
    report = compared()
    assert (report.first_stage, report.first_module) == ("executed", "0")
    assert len(counting) <= math.ceil(math.log2(8)) + 2
    probed = report.stages[-1].modules
    assert [record.module for record in probed] == ["0", "2", "6", "12"]
    assert probed[0].made_here_db == probed[0].before_db < 10
    assert all(math.isnan(record.made_here_db) for record in probed[1:])
    assert StageReport.from_dict(report.to_dict()).to_dict() == report.to_dict()
    assert "not known" in str(report)


def test_all_modules_of_a_right_program_are_measured_on_request(counting: list[int]) -> None:
    modules = compared(executed_modules=True).stages[-1].modules
    assert len(counting) == 2
    assert len(modules) == 8
    assert min(record.made_here_db for record in modules) > 30


def test_no_module_is_named_where_the_program_is_right(counting: list[int]) -> None:
    report = compared()
    assert (report.first_stage, counting) == ("", [13])


def test_a_layer_and_its_clamp_are_one_step_that_has_the_name_of_the_layer(
    counting: list[int],
) -> None:
    converted = quantized(network())
    anchors = anchors_of(converted)
    assert [end.module for end in ends_of(converted, anchors)] == [
        *("0", "2", "4", "6", "8"),
        *("10", "11", "12"),
    ]
    gone = Anchor("9", "nowhere", "nowhere")
    assert ends_of(converted, [gone]) == []


@pytest.mark.parametrize("wrong", [0, 3, 12, None])
def test_the_first_wrong_module_is_found_within_the_logarithm(wrong: int | None) -> None:
    anchors = [Anchor(str(index), f"n{index}", f"n{index}") for index in range(13)]
    asked = []

    def is_wrong(anchor: Anchor) -> bool:
        asked.append(anchor)
        return wrong is not None and int(anchor.module) >= wrong

    found = first_wrong(anchors, is_wrong)
    assert found == (None if wrong is None else anchors[wrong])
    assert len(asked) <= math.ceil(math.log2(13 + 1))


def test_a_model_that_ends_at_a_module_gives_its_quantized_value(counting: list[int]) -> None:
    model = network()
    cut = returning(quantized(model), [Anchor("1", "relu", "relu")])
    near = model[:2](SAMPLES[0])
    assert cut(SAMPLES[0]).shape == near.shape
    assert (cut(SAMPLES[0]) - near).abs().max() < 0.05
