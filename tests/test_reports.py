"""Reports: where decisions are kept, and what data, JSON, schema and text say of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources

import attrs
import jsonschema
import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import qcore
from qcore.quantizer import Quantizer
from qcore.report import (
    REPORTS,
    UNSERIALIZED,
    AnnotationReport,
    Decision,
    LayerRecord,
    LoweringReport,
    NodeRecord,
    Report,
    SourceReport,
    StrayNode,
    Verification,
    figure,
    notes,
    read_decisions,
    schema,
)
from qcore.testing import Fn

Build = Callable[[], Quantizer]
Capture = Callable[..., GraphModule]
ROW = torch.randn(2, 8)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y), (x,))


class TestDecisions:
    def test_they_travel_in_the_model_through_torchaos_own_flow(
        self, toy: Build, capture: Capture
    ) -> None:
        graph = capture(Fn(lambda m, x: m.a(x), a=nn.Linear(8, 8)), ROW)
        quantizer = toy().set_global("8a8w")
        prepared = prepare_pt2e(graph, quantizer)
        prepared(ROW)
        assert read_decisions(convert_pt2e(prepared)) == quantizer.report

    def test_those_of_bodies_are_in_the_model_that_runs_them(self, toy: Build) -> None:
        result = qcore.quantize(Branches(), toy().set_global("8a8w"), [ROW.abs(), -ROW.abs()])
        assert read_decisions(result.model) == result.report
        assert result.report["true_graph_0/linear"].is_quantized

    def test_a_model_is_judged_by_its_own_and_not_by_those_of_the_last_one(
        self, toy: Build, capture: Capture, monkeypatch
    ) -> None:
        quantizer, judged = toy().set_global("8a8w"), []
        monkeypatch.setattr(
            quantizer._hooks,
            "validate_partial",
            lambda model, plan, report: judged.append(report) or (),
        )
        first, second = (
            capture(Fn(function, a=nn.Linear(8, 8)), ROW)
            for function in (lambda m, x: m.a(x), lambda m, x: m.a(x).relu())
        )
        mine = quantizer.annotated(first)
        quantizer.annotated(second)
        quantizer.validate(first)
        assert judged == [mine]

    def test_a_model_that_was_not_annotated_has_none(self, capture: Capture) -> None:
        assert read_decisions(capture(nn.Linear(8, 8), ROW)) is None


EXAMPLES = (
    AnnotationReport("toy", (Decision("a", "aten.a", "m", "8a8w"), Decision("b", "aten.b", ""))),
    LoweringReport(
        "toy",
        delegates=1,
        delegated=(NodeRecord("a", "aten.a", "m"),),
        undelegated=(NodeRecord("b", "aten.b", reason="no kernel", advice="Take c."),),
        stray=(StrayNode("s", "quantize", ("b",)),),
        program_bytes=12,
        seconds={"export": 0.5},
    ),
    SourceReport("toy", (LayerRecord("a", "Linear", 8, 32, 4, "4w"),), 32, 4, ("b: it trains",)),
    Verification("toy", sqnr_db=81.5, max_abs_error=1e-6),
)


def published() -> dict:
    text = resources.files("qcore.report").joinpath("schema.json").read_text(encoding="utf-8")
    return json.loads(text)


@attrs.frozen
class Memory:
    bytes_by_kind: dict[str, int]
    shape: tuple[int, float]
    is_shared: bool | None = None


@attrs.frozen
class DeviceReport(LoweringReport):
    memory: tuple[Memory, ...] = ()
    cycles: int = 3
    handle: object = attrs.field(default=None, metadata=UNSERIALIZED)

    @figure
    def microseconds(self) -> float:
        """Time of one inference."""
        return self.cycles / 2


DEVICE = DeviceReport("toy", memory=(Memory({"sram": 8}, (1, 0.5)),))


@pytest.mark.parametrize("report", [*EXAMPLES, DEVICE], ids=lambda report: type(report).__name__)
class TestEveryReport:
    def test_its_json_fits_the_published_schema(self, report: Report) -> None:
        jsonschema.validate(json.loads(report.to_json()), published())

    def test_its_json_without_a_key_does_not_fit(self, report: Report) -> None:
        kind = next(kind for kind in REPORTS if isinstance(report, kind))
        for key in published()["$defs"][kind.__name__]["required"]:
            broken = {k: v for k, v in report.to_dict().items() if k != key}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(broken, published())

    def test_it_is_read_back_from_its_json(self, report: Report) -> None:
        assert type(report).from_dict(json.loads(report.to_json())) == report

    def test_its_text_begins_with_the_backend(self, report: Report) -> None:
        assert str(report).startswith("toy: ")


class TestTheText:
    def test_nodes_that_follow_others_for_one_reason_are_one_line(self) -> None:
        follow = [
            Decision(f"view{i}", "aten.view", "m", None, "", "it moves data", f"See softmax{i}.")
            for i in ("", "_1", "_2", "_3", "_4", "_5")
        ]
        others = [Decision(f"softmax{i}", "aten.softmax", "m", "8a8w") for i in ("", "_1", "_5")]
        text = str(AnnotationReport("toy", (*follow[:2], follow[5], *others)))
        assert "3 x aten.view in float: it moves data [m/view, m/view_1, m/view_5]" in text
        assert "See softmax.\n" in f"{text}\n"
        assert "See softmax_5." in str(AnnotationReport("toy", (follow[5], *others)))
        assert "[m/view, m/view, m/view, m/view, 2 more]" in str(
            AnnotationReport("toy", (follow[0],) * 6)
        )

    def test_operators_that_one_rule_leaves_in_float_are_one_line(self) -> None:
        left = [Decision(f"n{i}", f"aten.{'ab'[i > 0]}", "", None, "", "a rule") for i in range(3)]
        text = str(AnnotationReport("toy", tuple(left)))
        assert "3 x aten.b x2, aten.a x1 in float: a rule [n0, n1, n2]" in text

    def test_nodes_outside_the_delegates_are_one_line_with_what_to_try_below(self) -> None:
        left = [NodeRecord(f"n{i}", f"aten.{'ab'[i > 0]}", "", "why", "Try c.") for i in range(3)]
        left.append(NodeRecord("d", "aten.d", "", "it says all"))
        assert str(LoweringReport("toy", undelegated=tuple(left))).splitlines()[2:] == [
            "     3 x aten.b x2, aten.a x1: why [n0, n1, n2]",
            "         Try c.",
            "     1 x aten.d: it says all [d]",
        ]

    def test_layers_that_stay_for_one_reason_are_one_line(self) -> None:
        layers = [LayerRecord(name, "Linear", 8, 32, 32, reason="too small") for name in "abcdef"]
        text = str(SourceReport("toy", tuple(layers), 32, 32))
        assert "6 x Linear is as it was: too small [a, b, c, d, 2 more]" in text


class TestTheSchema:
    def test_the_published_one_is_what_the_classes_say(self) -> None:
        assert published() == schema(*REPORTS), (
            "Write it anew: python -m qcore.report > qcore/report/schema.json"
        )

    def test_it_is_a_json_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(published())

    def test_every_key_says_what_it_means(self) -> None:
        definitions = schema(*REPORTS)["$defs"]
        assert not [
            (name, key)
            for name, definition in definitions.items()
            for key, value in definition["properties"].items()
            if not value["description"]
        ]

    def test_a_type_without_a_form_in_json_is_refused_with_those_that_have_one(self) -> None:
        @attrs.frozen
        class Odd:
            value: torch.Tensor

        with pytest.raises(TypeError, match=r"Tensor.*no form in JSON. Use str, bool"):
            schema(Odd)


class TestABackendsOwn:
    def test_fields_and_figures_are_in_json_schema_and_text(self) -> None:
        data = json.loads(DEVICE.to_json())
        assert data["memory"][0] == {
            "bytes_by_kind": {"sram": 8},
            "is_shared": None,
            "shape": [1, 0.5],
        }
        assert (data["microseconds"], "handle" in data) == (1.5, False)
        jsonschema.validate(data, schema(DeviceReport))
        assert str(DEVICE).splitlines()[1:] == [
            "  cycles: 3",
            "  microseconds: 1.5",
            "  memory: 1 item",
        ]

    def test_their_schema_refuses_a_wrong_type(self) -> None:
        with pytest.raises(jsonschema.ValidationError, match="'many'"):
            jsonschema.validate({**DEVICE.to_dict(), "cycles": "many"}, schema(DeviceReport))

    def test_they_are_worded_by_a_function_of_the_backend(self) -> None:
        class Worded(DeviceReport):
            pass

        notes.register(Worded, lambda report: (f"takes {report.cycles} cycles",))
        assert str(Worded("toy")).splitlines()[1:] == ["  takes 3 cycles"]

    def test_the_general_class_reads_what_it_knows_of_them(self) -> None:
        assert LoweringReport.from_dict(DEVICE.to_dict()) == LoweringReport("toy")

    def test_a_new_kind_of_report_has_a_text_of_its_own(self) -> None:
        @attrs.frozen
        class Stages(Report):
            kind = "stages"
            sqnr_db: float

        assert str(Stages("toy", 20.5)) == "toy: stages\n  sqnr_db: 20.5"


def test_a_report_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of kind 'source', the data of one of kind 'lowering'"):
        SourceReport.from_dict(EXAMPLES[1].to_dict())


def test_a_field_that_an_earlier_release_did_not_have_takes_its_default() -> None:
    data = EXAMPLES[1].to_dict()
    del data["undelegated"][0]["advice"], data["stray"]
    found = LoweringReport.from_dict(data)
    assert (found.undelegated[0].reason, found.undelegated[0].advice) == ("no kernel", "")
    assert found.stray == ()


def test_a_number_that_is_not_finite_is_null() -> None:
    found = Verification("toy", sqnr_db=float("nan"), max_abs_error=float("inf"))
    data = json.loads(found.to_json())
    assert (data["sqnr_db"], data["max_abs_error"], data["ok"]) == (None, None, False)
    jsonschema.validate(data, published())
