"""Recipes: written, read, merged and checked; the same one makes the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import Result

import qcore
import qcore_analysis
from qcore_analysis import Recipe
from qcore_analysis.errors import RecipeError
from qcore_analysis.recipe import RecipeRule, recipe_schema

Command = Callable[..., Result]


def test_the_same_recipe_makes_the_same_bytes(program: Path, qcore: Command, folder: Path) -> None:
    done = qcore("quantize", "--recipe", "net.toml", "-o", "again.pte", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert (folder / "again.pte").read_bytes() == program.read_bytes()


@pytest.mark.parametrize(
    "chosen",
    [
        "tosa",
        pytest.param("vgf", marks=pytest.mark.slow),
        pytest.param("ethosu --option target=ethos-u85-256", marks=pytest.mark.slow),
    ],
)
def test_the_same_recipe_makes_the_same_bytes_in_another_process_with_another_hash_seed(
    chosen: str, qcore: Command, tmp_path: Path, folder: Path
) -> None:
    first, again, recipe = (tmp_path / name for name in ("first.pte", "again.pte", "recipe.toml"))
    made = ("quantize", "shop:net", "--calibration", "rows.npz", "--backend", *chosen.split())
    done = qcore(*made, "-o", first, "--save-recipe", recipe, "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    command = (sys.executable, "-m", "qcore", "quantize", "--recipe", recipe, "-o", again)
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([*command, "--quiet"], cwd=folder, env=environ, check=True)
    assert first.read_bytes() == again.read_bytes()


def test_what_was_saved_says_every_choice_and_fits_the_published_schema(
    program: Path, folder: Path
) -> None:
    data = tomllib.loads((folder / "net.toml").read_text())
    jsonschema.validate(data, recipe_schema())
    assert (data["backend"], data["model"], data["data"]) == ("xnnpack", "shop:net", "rows.npz")
    assert (data["scheme"], data["calibration"]) == ("8a8w static per-channel", "histogram")
    assert data["algorithms"] == ["bias_correction"]
    assert set(data["versions"]) >= {
        "qcore-quant",
        "torch",
        "torchao",
        "qcore-xnnpack",
        "executorch",
    }
    assert data["digests"]["model"].startswith("sha256:")


def test_the_published_schema_is_current() -> None:
    text = (files("qcore_analysis") / "recipe.schema.json").read_text()
    assert json.loads(text) == recipe_schema()


def test_a_recipe_with_other_weights_or_data_is_refused(
    program: Path, qcore: Command, folder: Path
) -> None:
    again = ("quantize", "--recipe", "net.toml", "-o", "other.pte")
    done = qcore(*again, "shop:planted")
    assert (done.exit_code, (folder / "other.pte").exists()) == (1, False)
    assert "The model is not the one" in done.stderr
    assert "Take digests.model out" in done.stderr


def test_other_layers_with_the_same_weights_have_another_digest() -> None:
    import torch

    from qcore_analysis.models import model_digest

    first, second = (torch.nn.Sequential(a) for a in (torch.nn.ReLU(), torch.nn.Sigmoid()))
    assert model_digest(first) != model_digest(second)


def test_a_base_holds_where_a_recipe_has_no_choice(tmp_path: Path) -> None:
    rule = RecipeRule("module_name", "float", "head")
    (tmp_path / "all").mkdir()
    Recipe("xnnpack", "8a8w", options={"a": 1, "b": 2}, rules=(rule,)).save(
        tmp_path / "all" / "base.toml"
    )
    (tmp_path / "own.toml").write_text(
        'base = "all/base.toml"\nscheme = "8a8w per-tensor"\n[options]\nb = 3\n'
        '[[rules]]\nselect = "io"\nscheme = "8a8w"\n'
    )
    read = Recipe.read(tmp_path / "own.toml")
    assert (read.backend, read.scheme) == ("xnnpack", "8a8w per-tensor")
    assert read.options == {"a": 1, "b": 3}
    assert read.rules == (rule, RecipeRule("io", "8a8w"))


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = Recipe(
        "ethosu",
        calibration="min_max",
        algorithms=(),
        options={"target": "ethos-u85-256"},
        rules=(RecipeRule("operator_type", "16a8w", "aten.add.Tensor"),),
    )
    assert Recipe.read(recipe.save(tmp_path / "r.toml")) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backend = ", "is no TOML"),
        ('scheme = "8a8w"', "the backend is missing"),
        ('bakend = "x"', "has no 'bakend'. Did you mean 'backend'?"),
        ('backend = "x"\nbatch = "2"', "batch: '2' is not of type 'integer'"),
        (
            'backend = "x"\nrules = [{select = "layer", scheme = "8a8w"}]',
            r"rules\.0\.select: 'layer' is not one of \['module_name'",
        ),
        ('base = "wrong.toml"\nbackend = "x"', "is its own base"),
        ('backend = "x"\nbatch = 0', "batch: 0 is less than the minimum of 1"),
        ('backend = "x"\nalgorithms = [1]', r"algorithms\.0: 1 is not of type 'string'"),
        ('backend = "x"\n[versions]\ntorch = 3', r"versions\.torch: 3 is not of type"),
        (
            'backend = "x"\nrules = [{select = "module_name", scheme = "8a8w"}]',
            "'name' is a required",
        ),
        (
            'backend = "x"\nrules = [{select = "io", scheme = "8a8w", nmae = "2"}]',
            r"rules\.0: Additional properties .*'nmae' was unexpected",
        ),
        ('base = "none.toml"', "Cannot read the recipe .*none.toml"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(RecipeError, match=says):
        Recipe.read(tmp_path / "wrong.toml")


def test_an_operator_that_there_is_not_is_refused() -> None:
    recipe = Recipe("xnnpack", rules=(RecipeRule("operator_type", "float", "aten.lineer.default"),))
    with pytest.raises(RecipeError, match=r"no operator 'aten\.lineer\.default'"):
        recipe.quantizer()


def test_other_versions_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from qcore.errors import QcoreWarning

    model: Any = torch.nn.Linear(2, 2)
    recipe = Recipe("xnnpack", versions={"torch": "2.0.0"})
    with pytest.warns(QcoreWarning, match=r"made with torch 2\.0\.0.*pip install torch==2\.0\.0"):
        recipe.check_made_with(model, [torch.rand(1, 2)])


def test_what_the_distribution_gives_are_names_of_qcore():
    for name in qcore_analysis.__all__:
        assert getattr(qcore, name) is getattr(qcore_analysis, name)
