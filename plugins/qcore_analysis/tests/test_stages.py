"""Where accuracy goes: the stage and the module that lose it are named first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typer.testing import Result

import qcore
from qcore.report import schema
from qcore_analysis import StageReport, compare_stages
from qcore_analysis.tracing import anchors_of

Command = Callable[..., Result]
COMPARE = ("--calibration", "rows.npz", "--data", "shop:samples")


def shop(name: str) -> Any:
    from qcore_analysis.models import imported

    return imported(f"shop:{name}", "model")


def quantizer(backend: str = "xnnpack", **options: Any) -> qcore.Quantizer:
    return qcore.get_quantizer(backend, **options).set_global("8a8w")


def compared(model: Any, chosen: qcore.Quantizer, **options: Any) -> StageReport:
    samples = shop("samples")
    return compare_stages(model.eval(), chosen, samples[:4], samples[4:], **options)


def test_a_planted_bad_layer_is_named_first_with_the_error_made_in_it() -> None:
    report = compared(shop("planted"), quantizer(), execute=False)
    assert (report.first_stage, report.first_module) == ("fake-quantized", "2")
    converted = {record.module: record for record in report.stages[-1].modules}
    assert converted["2"].made_here_db < 10
    assert converted["4"].sqnr_db < 25 < converted["4"].made_here_db, "it inherits its error"
    assert converted["2"].made_here_cosine < 0.9 < converted["4"].made_here_cosine
    assert converted["2"].made_here_max_abs_error > 10 * converted["4"].made_here_max_abs_error
    assert converted["2"].computed_db == converted["2"].made_here_db, "its weights lose it"
    assert converted["1"].computed_db > 100, "rounding its value does"


def test_a_layer_kept_in_float_makes_no_error_and_the_outputs_gain_ten_decibels() -> None:
    before = compared(shop("planted"), quantizer(), execute=False)
    kept = quantizer().set_module_name("2", None)
    after = compared(shop("planted"), kept, execute=False)
    assert after.stages[-1].sqnr_db >= before.stages[-1].sqnr_db + 10
    assert after.first is None


def test_a_good_model_diverges_nowhere() -> None:
    report = compared(shop("net"), quantizer(), execute=False)
    assert (report.first_stage, report.first_module) == ("", "")
    assert report.stages[0].sqnr_db > 100, "a rewrite keeps what is computed"
    assert "No module makes an error below 20 dB" in str(report)


def test_a_batch_norm_that_is_folded_away_is_no_error() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4)
    torch.nn.init.uniform_(norm.running_mean, -3, 3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm, torch.nn.ReLU())
    report = compared(model, quantizer(), execute=False)
    assert report.first is None
    assert [record.module for record in report.stages[0].modules] == ["0", "2"]


def test_the_command_names_the_layer_and_the_executed_program_is_a_stage(
    qcore: Command, in_json: Callable[..., Any]
) -> None:
    found = in_json("compare", "shop:planted", "--backend", "xnnpack", *COMPARE)
    assert (found["first_stage"], found["first_module"]) == ("fake-quantized", "2")
    names = [record["name"] for record in found["stages"]]
    assert names == ["transformed", "fake-quantized", "converted", "executed"]
    assert found["stages"][-1]["before_db"] > 30, "XNNPACK computes what the model does"
    assert StageReport.from_dict(found).to_dict() == found


def test_without_two_sets_of_samples_the_command_says_what_to_pass(qcore: Command) -> None:
    done = qcore("compare", "shop:net", "--backend", "xnnpack", "--calibration", "rows.npz")
    assert done.exit_code == 1
    assert "pass --calibration DATA, and --data DATA with others" in done.stderr


def test_ethosu_refuses_to_keep_a_layer_in_float_with_its_reason(qcore: Command) -> None:
    ethosu = ("--backend", "ethosu", "--option", "target=ethos-u85-256", "--keep-float", "2")
    done = qcore("compare", "shop:planted", *ethosu, *COMPARE)
    assert done.exit_code == 1
    assert "ethosu executes whole models in integers, so no part of one stays in float" in (
        done.stderr
    )


def test_the_page_of_a_program_that_nothing_here_executes_says_why(
    qcore: Command, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    vulkan = ("quantize", "shop:net", "--backend", "vulkan", "--scheme", "8w", "--quiet")
    done = qcore(*vulkan, *COMPARE, "-o", tmp_path / "net.pte", "--report", page)
    assert done.exit_code == 0, done.stderr
    text = re.sub(r"<[^>]+>|\s+", " ", page.read_text(encoding="utf-8"))
    assert re.search(r"SQNR, converted +\d+\.\d dB", text)
    assert re.search(r"executed +- +- +- +- +not executed: ", text)


def test_a_stage_that_is_not_executed_has_no_distance() -> None:
    report = compared(shop("net"), qcore.get_quantizer("vulkan").set_global("8w"))
    assert report.stages[-1].sqnr_db is None
    assert "executed: not executed: " in str(report)


def test_modules_are_those_that_give_values() -> None:
    graph = torch.export.export(shop("net"), (shop("samples")[0],)).module(check_guards=False)
    assert [anchor.module for anchor in anchors_of(graph)] == list("0123456")


def test_the_report_has_a_schema() -> None:
    assert "first_module" in schema(StageReport)["$defs"]["StageReport"]["properties"]
