"""A planted bad layer, by the commands alone: it is named, and in float the program gains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qcore_vgf.vulkan import find_device

Command = Callable[..., Result]
CALIBRATION = ("--calibration", "rows.npz")


def _needs_a_device(backend: str) -> None:
    if backend == "vgf":
        find_device()


BACKENDS = pytest.mark.parametrize(
    "backend", ["xnnpack", pytest.param("vgf", marks=pytest.mark.slow)]
)


@BACKENDS
def test_the_command_names_the_layer_first(backend: str, in_json: Callable[..., Any]) -> None:
    _needs_a_device(backend)
    named = ("--backend", backend, *CALIBRATION, "--data", "shop:samples")
    found = in_json("compare", "shop:planted", *named, "--executed-modules")
    assert (found["first_stage"], found["first_module"]) == ("fake-quantized", "2")
    executed = found["stages"][-1]
    assert (executed["name"], executed["note"]) == ("executed", "")
    modules = {record["module"]: record for record in executed["modules"]}
    assert list(modules) == ["0", "2", "4", "5", "6"]
    assert modules["2"]["sqnr_db"] < 10 < modules["0"]["sqnr_db"]
    assert modules["2"]["before_db"] > 25, "it is the model's error, and not the runtime's"


@BACKENDS
def test_kept_in_float_by_the_command_the_executed_program_gains_ten_decibels(
    backend: str, qcore: Command, in_json: Callable[..., Any], tmp_path: Path
) -> None:
    _needs_a_device(backend)

    def executed(*options: str) -> float:
        path = tmp_path / f"net{len(options)}.pte"
        quantize = ("quantize", "shop:planted", "--backend", backend, *CALIBRATION, *options)
        assert qcore(*quantize, "-o", path).exit_code == 0
        verify = ("verify", path, "--against", "shop:planted", "--data", "shop:samples")
        return float(in_json(*verify, "--min-sqnr", "-200")["sqnr_db"])

    before, after = executed(), executed("--keep-float", "2")
    print(f"{backend}: {before:.1f} dB, with the layer in float {after:.1f} dB")
    assert after >= before + 10


def test_ethosu_refuses_to_keep_it_in_float_with_its_reason(qcore: Command, folder: Path) -> None:
    ethosu = ("--backend", "ethosu", "--option", "target=ethos-u85-256", *CALIBRATION)
    done = qcore("quantize", "shop:planted", *ethosu, "--keep-float", "2", "-o", "refused.pte")
    assert (done.exit_code, (folder / "refused.pte").exists()) == (1, False)
    assert "ethosu executes whole models in integers, so no part of one stays in float" in (
        done.stderr
    )
