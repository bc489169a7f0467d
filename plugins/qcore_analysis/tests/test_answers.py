"""What commands answer programs with: each has the options for it, and its answer a schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from qcore.cli.app import app
from qcore.report import schema
from qcore_analysis.doctor import diagnose
from qcore_analysis.report_schema import ANSWERS, answers_schema

XNNPACK = ("--backend", "xnnpack")
SETS = ("--calibration", "rows.npz", "--data", "rows.npz")
CALLS = {
    "backends": (),
    "bench": ("net.pte", "--runs", "1", "--warmup", "0"),
    "compare": ("shop:net", *XNNPACK, *SETS, "--no-execute"),
    "doctor": ("--quick",),
    "explain": ("shop:net", *XNNPACK, "--input-shape", "1x3x8x8"),
    "matrix": ("shop:net", "--backends", "xnnpack", *SETS),
    "new-backend": ("my-npu",),
    "quantize": ("shop:net", *XNNPACK, "--calibration", "rows.npz", "-o", "answer.pte"),
    "run": ("net.pte", "--input", "rows.npz"),
    "schemes": ("xnnpack",),
    "verify": ("net.pte", "--against", "shop:net", "--data", "rows.npz", "--min-sqnr", "9"),
}


def commands(group: Any, *path: str) -> dict[str, Any]:
    """Return the commands of a group and of those in it, by what is typed."""
    context, found = typer.Context(group), {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inside = hasattr(command, "list_commands")
        found |= commands(command, *path, name) if inside else {" ".join((*path, name)): command}
    return found


def test_every_command_answers_in_json_and_is_quiet_on_request() -> None:
    lacks = {
        name
        for name, command in commands(typer.main.get_command(app)).items()
        if not {"--json", "--quiet"} <= {text for one in command.params for text in one.opts}
    }
    assert lacks == {"llm chat"}, "a conversation"


def test_each_command_here_has_a_schema() -> None:
    here = {name for name in commands(typer.main.get_command(app)) if not name.startswith("llm ")}
    assert set(CALLS) == here == {*ANSWERS, "run"}


@pytest.mark.parametrize("command", CALLS)
def test_the_answer_fits_the_published_schema(
    command: str, program: Path, in_json: Callable[..., Any]
) -> None:
    # What is installed may not fit together, as ExecuTorch 1.5 and the plugin for VGF.
    status = int(command == "doctor" and not diagnose(quick=True).ok)
    answer = in_json(command, *CALLS[command], status=status)
    own = schema(ANSWERS[command]) if command in ANSWERS else answers_schema()
    jsonschema.validate(answer, own)


def test_an_answer_with_a_key_less_does_not_fit(program: Path, in_json: Callable[..., Any]) -> None:
    answer = in_json("verify", *CALLS["verify"])
    for key in answer:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in answer.items() if k != key}, answers_schema())
