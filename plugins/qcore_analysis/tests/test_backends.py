"""One model on several backends: a row for each, failures with their reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from typer.testing import Result

from qcore.cli.progress import step
from qcore_analysis import BackendReport, Recipe, compare_backends
from qcore_analysis.models import imported
from qcore_analysis.report_schema import answers_schema

DATA = ("--calibration", "rows.npz", "--data", "shop:samples")


@pytest.mark.slow
def test_a_backend_that_fails_is_a_row_and_spoils_no_other(in_json: Callable[..., Any]) -> None:
    found = in_json("matrix", "shop:planted", "--backends", "xnnpack,ethosu,nowhere", *DATA)
    good, without_target, unknown = found["rows"]
    assert (good["failure"], good["backend"]) == ("", "xnnpack")
    assert "pass target='ethos-u85-256'" in without_target["failure"]
    assert "No backend 'nowhere'" in unknown["failure"]
    assert (good["quantized"], good["delegates"], good["undelegated"]) == (
        good["compute_nodes"],
        1,
        0,
    )
    assert good["executed_db"] > 20
    assert good["latency_ms"] > 0
    assert good["loss"].startswith("2: ")
    assert good["cause"].startswith("rounding its weights to 255 levels")
    assert f"by {good['cause']}" in str(BackendReport.from_dict(found))
    assert good["executed_by"] == "its runtime, on this machine"
    assert BackendReport.from_dict(found).to_dict() == found


def test_what_stands_for_a_device_is_named_and_not_timed() -> None:
    samples = imported("shop:samples", "data")
    report = compare_backends(imported("shop:net", "model"), ["tosa"], samples, samples)
    (row,) = report.rows
    assert (row.failure, row.latency_ms) == ("", None)
    assert row.executed_by == "Arm's TOSA reference model"
    jsonschema.validate(report.to_dict(), answers_schema())


def test_the_published_schema_is_current() -> None:
    text = (files("qcore_analysis") / "report.schema.json").read_text()
    assert json.loads(text) == answers_schema()


def test_where_all_fail_the_exit_status_says_so(qcore: Callable[..., Result]) -> None:
    done = qcore("matrix", "shop:net", "--backends", "nowhere", *DATA)
    assert done.exit_code == 1
    assert "failed" in done.stdout
    assert "nowhere: No backend 'nowhere'" in done.stdout


def test_a_backend_for_weights_alone_is_a_row_that_says_what_to_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcore.quantizer.Quantizer.supported_schemes", ())
    samples = imported("shop:samples", "data")
    report = compare_backends(imported("shop:net", "model"), ["xnnpack"], samples, samples)
    assert "xnnpack has schemes of qcore.quantize_ alone" in report.rows[0].failure


def test_a_row_that_takes_too_long_says_so_and_the_next_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        with step("waiting"):
            try:
                time.sleep(20)
            except Exception:
                pytest.fail("what catches errors must not catch this")

    monkeypatch.setattr("qcore.quantize", never)
    samples, told = imported("shop:samples", "data"), []
    report = compare_backends(
        imported("shop:net", "model"),
        ["xnnpack", "nowhere"],
        samples,
        samples,
        time_limit=0.2,
        on_row=lambda row: told.append(row.backend),
    )
    assert "the time limit of 0.2 s was up, xnnpack: quantizing" in report.rows[0].failure
    assert "No backend" in report.rows[1].failure
    assert told == ["xnnpack", "nowhere"]


def test_a_recipe_a_layer_in_float_and_a_metric_hold_for_each_backend(
    in_json: Callable[..., Any],
) -> None:
    Recipe("xnnpack", "8a8w per-tensor", options={}, algorithms=()).save("each.toml")
    backends = ("--backends", "ethosu,xnnpack", "--option", "ethosu.target=ethos-u85-256")
    chosen = ("--recipe", "each.toml", "--keep-float", "2", "--metric", "builtins:len")
    refused, row = in_json("matrix", "shop:planted", *backends, *chosen, *DATA)["rows"]
    assert "no part of one stays in float" in refused["failure"]
    assert (row["failure"], row["scheme"], row["metric"]) == ("", "8a8w per-tensor", 8)
    assert row["quantized"] == 5, "the layer and the clamp behind it are in float"


def test_a_metric_that_fails_says_what_it_gets() -> None:
    samples = imported("shop:samples", "data")
    net, metric = imported("shop:net", "model"), imported("math:sqrt", "metric", call=False)
    report = compare_backends(net, ["xnnpack"], samples, samples, metric=metric)
    assert "the metric failed: TypeError" in report.rows[0].failure
    assert "a list of what the program returns" in report.rows[0].failure


@pytest.mark.parametrize(
    ("metric", "says"),
    [("math:sqr", "has no 'sqr'. Did you mean sqrt"), ("math", "names no metric")],
)
def test_a_metric_that_there_is_not_is_named(
    metric: str, says: str, qcore: Callable[..., Result]
) -> None:
    done = qcore("matrix", "shop:net", "--backends", "xnnpack", *DATA, "--metric", metric)
    assert done.exit_code == 1
    assert says in done.stderr


def test_an_option_without_its_backend_is_refused(qcore: Callable[..., Result]) -> None:
    done = qcore("matrix", "shop:net", "--backends", "ethosu", "--option", "target=x", *DATA)
    assert done.exit_code == 1
    assert "Write BACKEND.target=x" in done.stderr


@pytest.mark.slow
def test_on_an_npu_the_compiler_says_cycles_and_the_reference_model_executes() -> None:
    model, samples = imported("shop:net", "model").eval(), imported("shop:samples", "data")
    report = compare_backends(
        model,
        ["ethosu"],
        samples[:4],
        samples[4:],
        options={"ethosu": {"target": "ethos-u85-256"}},
        metric=len,
    )
    (row,) = report.rows
    assert row.failure == ""
    assert row.cycles is not None
    assert row.cycles > 0
    assert row.latency_ms is None
    assert "reference model" in row.executed_by
    assert row.metric == 4
    assert "cycles" in str(report)
