"""``qcore llm``: from a folder to a program that answers, and what it says to wrong input."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

import qcore_llm
from qcore.cli.app import app
from qcore.report import schema
from qcore_llm.answers import PerplexityFound, ProgramMade, answers_schema

QUANTIZE = ["llm", "quantize"]


def run(*arguments: object, given: str = "") -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], input=given)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("made") / "model.pte"
    text = path.with_name("text.txt")
    text.write_text("A text to calibrate on, of some length. " * 200, encoding="utf-8")
    result = run(*QUANTIZE, folder, "-o", path, "--text", text, "--max-context", 32, "--json")
    assert result.exit_code == 0, result.output
    return path, json.loads(result.stdout)


def test_quantize_writes_a_program_and_says_what_became_of_the_layers(
    made: tuple[Path, Any],
) -> None:
    path, data = made
    assert data["program"] == str(path)
    assert data["max_context"] == 32
    assert data["report"]["by_scheme"]
    jsonschema.validate(data, schema(ProgramMade))


def test_chat_answers_each_line_until_an_empty_one(made: tuple[Path, Any]) -> None:
    result = run("llm", "chat", made[0], "--max-new-tokens", 2, given="a\n\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\n")


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "The prompt is empty"), ("word " * 99, "cache holds 32")]
)
def test_a_prompt_that_does_not_fit_is_an_error(
    made: tuple[Path, Any], prompt: str, message: str
) -> None:
    result = run("llm", "chat", made[0], "--prompt", prompt)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_program_without_a_tokenizer_is_not_talked_to(
    quantized_llama: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.pte"
    qcore_llm.lower(quantized_llama, max_context=32, check=False).save(path)
    result = run("llm", "chat", path, given="a\n\n")
    assert result.exit_code == 1
    assert "made without a tokenizer" in result.stderr


def test_perplexity_of_a_program_is_measured(made: tuple[Path, Any]) -> None:
    result = run("llm", "perplexity", made[0], "--tokens", 40, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 1 < found["perplexity"] < 1000
    jsonschema.validate(found, schema(PerplexityFound))


def test_the_published_schema_of_the_answers_is_current() -> None:
    text = (files("qcore_llm") / "answers.schema.json").read_text()
    assert json.loads(text) == answers_schema()


@pytest.mark.parametrize("cut", [3, 200])
def test_a_gguf_file_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((b"GGUF\x03\x00\x00\x00" + b"\x00" * 400)[:cut])
    result = run(*QUANTIZE, path, "-o", tmp_path / "model.pte")
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert not (tmp_path / "model.pte").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*QUANTIZE, "nowhere", "-o", "m.pte"], "There is no nowhere"),
        ([*QUANTIZE, ".", "-o", "no/folder/m.pte"], "does not exist"),
        (["llm", "perplexity", "nowhere.pte"], "nowhere.pte"),
        (["llm", "chat", "nowhere.pte"], "nowhere.pte"),
    ],
)
def test_what_is_not_there_is_named(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_text_that_is_no_text_is_named(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "picture.txt"
    text.write_bytes(b"\xff\xfe\x00\xd8")
    result = run("llm", "perplexity", folder, "--text", text)
    assert result.exit_code == 1
    assert "UTF-8" in result.stderr


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    result = run(*QUANTIZE, tmp_path, "-o", tmp_path / "m.pte")
    assert result.exit_code == 1
    assert "transformers reads no language model" in result.stderr
