"""The commands: what they answer, and what they say of wrong input."""

from __future__ import annotations

import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import Result

Command = Callable[..., Result]
QUANTIZE = ("quantize", "shop:net", "--backend", "xnnpack", "--calibration", "rows.npz")
SETS = "--calibration rows.npz --data rows.npz"
VERIFY = ("--against", "shop:net", "--data", "shop:samples")


def test_a_program_is_run_and_its_outputs_are_written(
    program: Path, in_json: Callable[..., Any], qcore: Command, folder: Path
) -> None:
    outputs = in_json("run", program, "--input", "rows.npz")["outputs"]
    assert (len(outputs), len(outputs[0][0][0])) == (8, 4)
    assert qcore("run", program, "--input", "rows.pt", "-o", "out.npz").exit_code == 0
    with numpy.load(folder / "out.npz") as written:
        assert numpy.allclose(written["sample0_output0"], outputs[0][0])


def test_a_program_that_is_near_enough_is_verified(
    program: Path, in_json: Callable[..., Any]
) -> None:
    found = in_json("verify", program, *VERIFY, "--min-sqnr", "20")
    assert found["ok"]
    assert found["sqnr_db"] > 20
    assert found["samples"] == 8


def test_a_program_that_is_too_far_away_is_an_exit_status(program: Path, qcore: Command) -> None:
    done = qcore("verify", program, *VERIFY, "--min-sqnr", "90")
    assert done.exit_code == 1
    assert done.stdout.startswith("TOO FAR")
    assert "qcore compare shop:net" in done.stdout


def test_a_program_is_timed_on_inputs_that_its_file_describes(
    program: Path, in_json: Callable[..., Any]
) -> None:
    assert in_json("bench", program, "--runs", "2", "--warmup", "0")["runs"] == 2


def test_what_would_be_quantized_is_explained_without_data(in_json: Callable[..., Any]) -> None:
    explain = ("explain", "shop:net", "--backend", "xnnpack", "--input-shape", "1x3x8x8")
    found = in_json(*explain, "--keep-float", "6")
    left = [d["module"] for d in found["decisions"] if d["scheme"] is None]
    assert "6" in left


def test_each_node_is_listed_on_request(qcore: Command) -> None:
    explain = ("explain", "shop:net", "--backend", "xnnpack", "--input-shape", "1x3x8x8")
    text = qcore(*explain, "--keep-float", "6", "--all").stdout
    assert "  0/conv2d (aten.conv2d.default): 8a8w static per-channel\n" in text
    assert "  6/linear (aten.linear.default): float, set_module_name('6', None)" in text


def test_an_exported_model_says_itself_what_it_takes(
    in_json: Callable[..., Any], folder: Path
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 4),)), folder / "linear.pt2")
    assert in_json("explain", "linear.pt2", "--backend", "xnnpack")["quantized"] == 1


class Sums(torch.nn.Module):
    """Running sums behind a layer, by an operator that is not delegated or by another layer."""

    def __init__(self, by_layer: bool) -> None:
        super().__init__()
        self.by_layer = by_layer
        self.first, self.sums = (torch.nn.Linear(8, 8, bias=first) for first in (True, False))
        self.sums.weight.data = torch.ones(8, 8).tril()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.sums(y) if self.by_layer else y.cumsum(-1)


def test_what_no_delegate_takes_has_what_to_try_and_who_does_has_all_delegated(
    qcore: Command, tmp_path: Path
) -> None:
    def told(by_layer: bool) -> str:
        model, data = Sums(by_layer).eval().requires_grad_(False), tmp_path / "row.npz"
        numpy.savez(data, x=numpy.linspace(-1, 1, 64, dtype=numpy.float32).reshape(8, 8))
        path = tmp_path / "sums.pt2"
        torch.export.save(torch.export.export(model, (torch.rand(1, 8),)), path)
        named = ("--backend", "xnnpack", "--calibration", data, "-o", tmp_path / "sums.pte")
        done = qcore("quantize", path, *named)
        assert done.exit_code == 0, done.output
        return done.stdout

    tried = "Write it in the model with operators that the support page lists for this backend."
    assert re.search(rf"1 x aten\.cumsum\.default: .*\n +{tried}\n", told(by_layer=False))
    text = told(by_layer=True)
    assert (tried in text, "they still run" in text, "1 delegate" in text) == (False, False, True)


def test_schemes_are_listed_as_the_backend_declares_them(in_json: Callable[..., Any]) -> None:
    quick = in_json("schemes", "xnnpack")
    assert "8a8w static per-channel" in quick["pt2e"]
    from qcore_analysis.commands.schemes import schemes_of

    assert quick == {"backend": "xnnpack", **schemes_of("xnnpack", {})}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("backends",), ("schemes", "ethosu"), ("doctor", "--quick")]
)
def test_light_commands_start_at_once_and_import_no_torch(arguments: tuple[str, ...]) -> None:
    at_exit = (
        "import atexit, sys, time; "
        "atexit.register(lambda: print('torch' in sys.modules, time.process_time())); "
    )

    def seconds(code: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", at_exit + code, *arguments],
            capture_output=True,
            text=True,
            check=False,  # The doctor of a broken installation has an exit status.
        )
        imported, taken = done.stdout.splitlines()[-1].split()
        assert imported == "False"
        return float(taken)

    # Python alone takes 0.02 s of CPU; on a machine that is slow or busy both take longer.
    alone = max(0.02, min(seconds("pass") for _ in range(3)))
    assert min(seconds("from qcore.cli import main; main()") for _ in range(3)) < 15 * alone


def corrupt(folder: Path) -> str:
    (folder / "cut.npz").write_bytes((folder / "rows.npz").read_bytes()[:-40])
    return "cut.npz"


def pickled_array(folder: Path) -> str:
    numpy.savez(folder / "objects.npz", x=numpy.array([{}, 1], dtype=object))
    return "objects.npz"


def pickled_object(folder: Path) -> str:
    class Runs:
        def __reduce__(self) -> Any:
            return print, ("run",)

    (folder / "objects.pt").write_bytes(pickle.dumps(Runs(), protocol=2))
    return "objects.pt"


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir(exist_ok=True)
    return "empty"


def pictures(folder: Path) -> str:
    from PIL import Image

    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / "pictures" / "a.png")
    return "pictures"


def broken_picture(folder: Path) -> str:
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "a.png").write_bytes(b"no picture")
    return "broken --pictures size=8"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("none.npz", "There is no data none.npz. Data is a .safetensors"),
        ("shop.py", "'?.py'? is unknown. Data is a .safetensors"),
        (corrupt, "Cannot read cut.npz as tensors.*Write it again"),
        (pickled_array, "Cannot read objects.npz.*allow_pickle.*plain tensors only"),
        (pickled_object, "Cannot read objects.pt.*plain tensors only"),
        (empty_folder, "The folder empty has no pictures"),
        (pictures, 'is a folder of pictures. Declare.*--pictures "size=224'),
        (broken_picture, "broken/a.png is no picture that can be read"),
        ("shop:number", "gives int, and a collection of samples is due"),
        ("shop:sample", "has no 'sample'. Did you mean samples"),
        ("shap:samples", "there is no module 'shap'. Install it, or run the command in"),
        ("rows.npz --batch 3", "8 samples of rows.npz do not make batches of 3"),
    ],
)
def test_wrong_data_is_named_with_the_next_step(
    data: Any, says: str, qcore: Command, folder: Path
) -> None:
    text = data if isinstance(data, str) else data(folder)
    done = qcore(*QUANTIZE[:-1], *text.split(), "-o", "never.pte")
    assert done.exit_code == 1
    assert re.search(says, done.stderr), done.stderr
    assert not (folder / "never.pte").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("none.pt2", "There is no model none.pt2. Pass a .pt2 file"),
        ("rows.npz", "rows.npz is no file with an exported model"),
        ("fake.pt2", "Cannot read a model from fake.pt2: it is no whole exported model"),
        ("shop:number", "shop:number gives int, and a torch.nn.Module"),
        ("shop:nett", "The module shop has no 'nett'. Did you mean net"),
        ("shop:broken", r"shop:broken\(\) failed: ValueError: no weights here"),
    ],
)
def test_a_wrong_model_is_named_with_the_next_step(
    model: str, says: str, qcore: Command, folder: Path
) -> None:
    (folder / "fake.pt2").write_text("no model")
    done = qcore("quantize", model, *QUANTIZE[2:], "-o", "never.pte")
    assert done.exit_code == 1
    assert re.search(says, done.stderr), done.stderr
    assert not (folder / "never.pte").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("quantize shop:net -b xnnpak --calibration rows.npz -o x.pte", "Did you mean 'xnnpack'"),
        ("quantize shop:net --calibration rows.npz -o x.pte", "pass --backend NAME; qcore backend"),
        ("quantize shop:net -b xnnpack -o x.pte", "No calibration data: pass --calibration DATA"),
        ("quantize -b xnnpack --calibration rows.npz -o x.pte", "No model: name a .pt2 file"),
        ("quantize shop:net -b xnnpack --calibration rows.npz -o no/x.pte", "mkdir -p no"),
        ("quantize shop:net -b xnnpack --calibration rows.npz -o .", "it is a folder"),
        ("quantize shop:net -b xnnpack --calibration rows.npz -o x --scheme 3q", "not a scheme's"),
        ("quantize shop:net -b xnnpack --calibration rows.npz -o x --option threads", "NAME=VALUE"),
        (
            "quantize shop:net -b xnnpack --calibration rows.npz -o x --scheme 8da4w "
            "--node-data x.json",
            "Leave --node-data out",
        ),
        ("quantize shop:net -b xnnpack --calibration rows.npz -o x --report no/x.html", "-p no"),
        ("quantize shop:net --recipe none.toml -o x.pte", "Cannot read the recipe none.toml"),
        ("explain shop:net -b xnnpack", "--input-shape 1x3x224x224"),
        ("explain none.pt2 -b xnnpack", "There is no model none.pt2"),
        ("explain text.pt2 -b xnnpack", "text.pt2: it is no whole exported model"),
        ("explain rows.npz -b xnnpack", "rows.npz is no file with an exported model"),
        ("explain shop:nett -b xnnpack", "Did you mean net"),
        ("explain shop:net -b xnnpak --input-shape 1x3x8x8", "Did you mean 'xnnpack'"),
        ("explain shop:net -b xnnpack --data none.npz", "There is no data none.npz"),
        ("explain shop:net -b xnnpack --data cut.npz", "Cannot read cut.npz as tensors"),
        ("explain shop:net -b xnnpack --data flat.npz", "does not take"),
        ("explain shop:net -b xnnpack --input-shape 1,3", "Write them as 1x3x224x224"),
        ("explain shop:net -b xnnpack --input-shape 1x3x8x8 --keep-float hed", "no module 'hed'"),
        ("run none.pte --input rows.npz", "none.pte"),
        ("run rows.npz --input rows.npz", "rows.npz"),
        ("schemes xnnpak", "Did you mean 'xnnpack'"),
        ("schemes xnnpack --option x=1", "has no option 'x'"),
        ("compare shop:net -b xnnpack", "Two sets of samples are needed"),
        ("compare none.pt2 -b xnnpack " + SETS, "There is no model none.pt2"),
        ("compare shop:net -b xnnpak " + SETS, "Did you mean 'xnnpack'"),
        ("compare shop:net -b xnnpack --calibration rows.npz --data none.npz", "no data none.npz"),
        (
            "compare shop:net -b xnnpack --calibration empty --data rows.npz",
            "empty has no pictures",
        ),
        (
            "compare shop:net -b xnnpack --no-execute --calibration rows.npz --data flat.npz",
            "The float model does not take sample 0 of --data",
        ),
        ("matrix shop:net --backends , " + SETS, "qcore backends lists what there is"),
        ("matrix shop:net --backends xnnpack", "Two sets of samples are needed"),
        ("matrix none.pt2 --backends xnnpack " + SETS, "There is no model none.pt2"),
        ("matrix shop:net --backends vgf --option target=3 " + SETS, "Write BACKEND.target=3"),
        ("matrix shop:net --backends vgf --option tosa.x=3 " + SETS, "Add tosa"),
        ("run text.pte --input rows.npz", "text.pte is not an ExecuTorch program"),
        ("run cut.pte --input rows.npz", "cut.pte is truncated"),
        ("run empty --input rows.npz", "Cannot read a program from empty: Is a directory"),
        ("run net.pte --input flat.npz", "expected float32[1, 3, 8, 8]"),
        ("run net.pte --input rows.npz -o no/out.npz", "the folder no does not exist"),
        ("verify none.pte --data rows.npz --against shop:net --min-sqnr 9", "none.pte"),
        ("verify net.pte --data rows.npz --against none.pt2 --min-sqnr 9", "no model none.pt2"),
        ("verify net.pte --data flat.npz --against shop:net --min-sqnr 9", "sample 0 of --data"),
        ("bench cut.pte", "cut.pte is truncated"),
        ("bench net.pte --input flat.npz", "expected float32[1, 3, 8, 8]"),
        ("doctor qcore-npu", "No distribution 'qcore-npu'"),
        ("new-backend 3x", "is no name for a backend"),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_next_step(
    arguments: str, says: str, qcore: Command, folder: Path, program: Path
) -> None:
    (folder / "text.pte").write_text("no program")
    (folder / "text.pt2").write_text("no model")
    corrupt(folder)
    (folder / "cut.pte").write_bytes(program.read_bytes()[:-4000])
    numpy.savez(folder / "flat.npz", x=numpy.ones((8, 5), numpy.float32))
    empty_folder(folder)
    done = qcore(*arguments.split())
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (folder / "x.pte").exists()


@pytest.mark.parametrize(
    "arguments",
    ["quantize", "bench net.pte --runs 0", "doctr", "verify net.pte --min-sqnr much", "schemes"],
)
def test_what_is_no_command_line_is_exit_status_2(arguments: str, qcore: Command) -> None:
    assert qcore(*arguments.split()).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(
    shell: str, qcore: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = qcore("--show-completion", shell)
    assert (done.exit_code, "COMPLETE" in done.stdout) == (0, True)


def test_a_folder_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcore_analysis.errors import InputError
    from qcore_analysis.samples import load_data

    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="Cannot read the folder .*Permission denied"):
        load_data("/")


def test_what_may_not_be_read_is_named_and_nothing_is_written(
    qcore: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def refuse(self: Path, **more: Any) -> bool:
        if self.name == "private.npz":
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self, **more)

    monkeypatch.setattr(Path, "exists", refuse)
    before = sorted(folder.iterdir())
    named = ("--backend", "xnnpack", "--calibration", "private.npz", "-o", "private.pte")
    done = qcore("quantize", "shop:net", *named)
    assert done.exit_code == 1
    assert "Permission denied: 'private.npz'. Name a file" in done.stderr
    assert sorted(folder.iterdir()) == before


def test_no_quantized_model_is_written_where_weights_alone_are(
    qcore: Command, folder: Path
) -> None:
    named = ("--backend", "xnnpack", "--scheme", "8da4w", "--calibration", "rows.npz")
    done = qcore("quantize", "shop:net", *named, "-o", "net.qpt2")
    assert (done.exit_code, (folder / "net.qpt2").exists()) == (1, False)
    assert "Name a program, such as net.pte" in done.stderr


def test_a_quantized_model_is_written_without_lowering_it_and_lowered_later(
    program: Path,
    in_json: Callable[..., Any],
    qcore: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr("qcore.Quantizer.lower")
        done = qcore(*QUANTIZE, "-o", "net.qpt2")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("qcore quantize net.qpt2 -o net.pte lowers it.\n")
    found = in_json("quantize", "net.qpt2", "-o", "later.pte")
    assert (found["report"]["quantized"], found["lowering"]["delegates"]) == (7, 1)
    assert (folder / "later.pte").read_bytes() == program.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "quantize some.qpt2 -o x.pte --keep-float 2 --scheme 8a8w",
            "so --scheme, --keep-float wo",
        ),
        ("quantize some.qpt2 -o x.qpt2", "Name a program to make of it, such as x.pte"),
        ("quantize some.qpt2 -o x.pte", "some.qpt2 is no whole quantized model"),
        ("quantize none.qpt2 -o x.pte", "none.qpt2"),
        ("run some.qpt2 --input rows.npz", "qcore quantize some.qpt2 -o some.pte makes one"),
        ("verify some.qpt2 --data x.npz --against shop:net --min-sqnr 9", "no program yet"),
        (
            "verify net.pte --data rows.npz --against some.qpt2 --min-sqnr 9",
            "the float model is due",
        ),
        ("compare some.qpt2 -b xnnpack " + SETS, "the float model is due here"),
        ("matrix some.qpt2 --backends xnnpack " + SETS, "the float model is due here"),
    ],
)
def test_a_quantized_model_in_the_wrong_place_is_answered_with_the_next_step(
    arguments: str, says: str, qcore: Command, folder: Path, program: Path
) -> None:
    (folder / "some.qpt2").write_text("no model")
    done = qcore(*arguments.split())
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (folder / "x.pte").exists()


def test_pictures_are_read_as_declared(folder: Path) -> None:
    from qcore_analysis.samples import load_data

    (sample,) = load_data(pictures(folder), pictures="size=2 mean=127/0/0 std=128/1/1")
    assert sample.shape == (1, 3, 2, 2)
    assert sample[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_all_forms_of_data_hold_the_same_samples(folder: Path) -> None:
    from qcore_analysis.samples import data_digest, load_data

    rows = torch.from_numpy(numpy.load(folder / "rows.npz")["x"])
    save_file({"x": rows}, folder / "rows.safetensors")
    forms = ("rows.npz", "rows.pt", "rows.safetensors", "shop:samples")
    assert len({data_digest(load_data(form)) for form in forms}) == 1


def test_tensors_of_several_names_are_keyword_arguments(folder: Path) -> None:
    from qcore_analysis.samples import load_data

    numpy.savez(folder / "two.npz", x=numpy.zeros((4, 3)), y=numpy.ones((4, 1)))
    samples = load_data("two.npz", batch=2)
    assert [{k: tuple(v.shape) for k, v in s.items()} for s in samples] == [
        {"x": (2, 3), "y": (2, 1)}
    ] * 2


def test_an_exported_file_that_could_run_code_is_refused(qcore: Command, folder: Path) -> None:
    import zipfile

    model = torch.nn.Linear(4, 4).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 4),)), folder / "good.pt2")
    with (
        zipfile.ZipFile(folder / "good.pt2") as old,
        zipfile.ZipFile(folder / "bad.pt2", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                content = content.replace(b"torch.ops.aten.linear.default", b"os.system")
            new.writestr(name, content)
    done = qcore("explain", "bad.pt2", "--backend", "xnnpack")
    assert done.exit_code == 1
    assert "could run code" in done.stderr


def test_the_files_that_list_schemes_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "scheme_files.py"))
    assert (tool["main"](["--check"]), capsys.readouterr().out) == (0, "")
