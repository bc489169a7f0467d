"""A quantized model in a file: what comes back, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import ModelFileError
from qcore.model_file import read_exported
from qcore.quantizer import Quantizer

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def result(toy: Callable[[], Quantizer]) -> qcore.QuantizedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    quantizer = toy().set_global("8a8w").set_module_name("2", None)
    batch = torch.export.Dim("batch", min=1, max=8)
    return qcore.quantize(model, quantizer, [X], dynamic_shapes=({0: batch},))


@pytest.fixture
def path(result: qcore.QuantizedModel, tmp_path: Path) -> Path:
    return result.save(tmp_path / "model.qpt2")


def rewrite(path: Path, part: str, change: Callable[[bytes], bytes]) -> None:
    """Change one part of the file, or of the archive inside it."""

    def rewritten(data: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "model.pt2" and name != part:
                    content = rewritten(content)
                new.writestr(name, change(content) if name.endswith(part) else content)
        return target.getvalue()

    path.write_bytes(rewritten(path.read_bytes()))


def in_json(path: Path, part: str, change: Callable[[Any], None]) -> None:
    def edit(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    rewrite(path, part, edit)


def test_the_model_computes_the_same_and_its_sizes_still_vary(
    result: qcore.QuantizedModel, path: Path
) -> None:
    loaded = qcore.load_quantized(path)
    for rows in (X, X[:1], torch.cat([X, X])):
        assert torch.equal(loaded.model(rows), result.model(rows))


def test_the_report_is_inside(result: qcore.QuantizedModel, path: Path) -> None:
    assert qcore.load_quantized(path).report == result.report


def test_a_loaded_model_is_saved_as_the_same_file(path: Path, tmp_path: Path) -> None:
    again = qcore.load_quantized(path).save(tmp_path / "again.qpt2")
    assert again.read_bytes() == path.read_bytes()


def test_the_samples_are_not_in_the_file(path: Path) -> None:
    assert X.numpy().tobytes() not in path.read_bytes()


def test_pickling_the_model_names_what_works(result: qcore.QuantizedModel, tmp_path: Path) -> None:
    for write in (
        lambda: torch.save(result.model, tmp_path / "x.pt"),
        lambda: pickle.dumps(result),
    ):
        with pytest.raises(ModelFileError, match=r"result\.save\('model\.qpt2'\)"):
            write()


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1], ids=str)
def test_a_file_cut_short_is_refused(path: Path, kept: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ModelFileError, match=r"model\.qpt2 is no whole quantized model"):
        qcore.load_quantized(path)


def test_another_zip_is_refused(tmp_path: Path) -> None:
    torch.save(X, tmp_path / "x.pt")
    with pytest.raises(ModelFileError, match=r"x\.pt is no whole quantized model"):
        qcore.load_quantized(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for wrong, why in ((tmp_path / "none.qpt2", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ModelFileError, match=f"{why}.*written by result.save"):
            qcore.load_quantized(wrong)


def test_nothing_is_written_where_nothing_can_be(
    result: qcore.QuantizedModel, tmp_path: Path
) -> None:
    for wrong, why in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "m.qpt2", "does not exist"),
    ):
        with pytest.raises(ModelFileError, match=why):
            result.save(wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_torch_is_refused_with_the_version_to_install(path: Path) -> None:
    in_json(path, "qcore.json", lambda facts: facts["versions"].update(torch="2.11.3"))
    with pytest.raises(ModelFileError, match=r"with torch 2\.11\.3.*Install torch==2\.11\.\*"):
        qcore.load_quantized(path)


def test_a_file_of_a_later_release_is_refused(path: Path) -> None:
    in_json(path, "qcore.json", lambda facts: facts.update(format=2))
    with pytest.raises(ModelFileError, match="format 2 .*--upgrade qcore-quant"):
        qcore.load_quantized(path)


def a_call(data: Any) -> None:
    data["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def a_formula(data: Any) -> None:
    data["range_constraints"]["s0"] = {"expr_str": "__import__('os').getpid()"}


def an_import(data: Any) -> None:
    text = r'[1, {"context": "{\"\\u005f_enum__\": true, \"fqn\": \"a:B\"}"}]'
    data["graph_module"]["module_call_graph"][0]["note"] = text


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("models/model.json", a_call, "a call of torch.os.system"),
        ("models/model.json", a_formula, "the formula .*getpid"),
        ("models/model.json", an_import, "a structure that imports modules"),
        (
            "model_weights_config.json",
            lambda data: next(iter(data["config"].values())).update(use_pickle=True),
            "a pickled tensor",
        ),
    ],
)
def test_a_file_that_could_run_code_is_refused(
    path: Path, part: str, change: Callable[[Any], None], message: str
) -> None:
    in_json(path, part, change)
    with pytest.raises(ModelFileError, match=f"is refused: it holds {message}"):
        qcore.load_quantized(path)


def test_a_file_with_objects_among_its_inputs_is_refused(path: Path) -> None:
    rewrite(path, "sample_inputs/model.pt", lambda _: pickle.dumps(print))
    with pytest.raises(ModelFileError, match=r"is refused: it holds objects"):
        qcore.load_quantized(path)


def test_an_exported_float_model_is_read_without_its_example_inputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (X,)), tmp_path / "model.pt2")
    program = read_exported(tmp_path / "model.pt2")
    assert program.example_inputs is None
    assert torch.equal(program.module()(X), model(X))


def test_what_is_no_exported_model_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "no.pt2").write_bytes(b"no zip")
    for name, why in (("no.pt2", "no whole exported model"), ("none.pt2", "No such file")):
        with pytest.raises(ModelFileError, match=rf"{why}.*torch\.export\.save"):
            read_exported(tmp_path / name)
