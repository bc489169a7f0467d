"""The ``qcore`` command: quick, quiet, and writing what installs."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qcore import registry
from qcore.cli import app, main, scaffold
from qcore.errors import ScaffoldError
from qcore.quiet import HIDDEN, quiet

CODE = "import sys; from qcore.cli import main; sys.argv[0] = 'qcore'; main()"


def qcore(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_an_error_names_a_file_with_what_libraries_said_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        with quiet():
            logging.getLogger("torch.noise").warning("a record of %s", "torch")
            warnings.warn_explicit("a warning of torch", UserWarning, "t.py", 1, "torch.noise")
        raise ScaffoldError("no luck")

    monkeypatch.setattr(scaffold, "write_backend", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    HIDDEN.clear()
    done = CliRunner().invoke(app.app, ["new-backend", "x"])
    (log,) = tmp_path.glob("qcore-*.log")
    assert (done.exit_code, done.stderr) == (
        1,
        f"qcore: no luck\nWhat the libraries said meanwhile: {log}\n",
    )
    text = log.read_text()
    assert "WARNING torch.noise: a record of torch" in text
    assert "WARNING torch.noise: a warning of torch" in text
    HIDDEN.clear()


NOISY = """
import os, subprocess, sys
import typer
from qcore.cli import app
from qcore.errors import QcoreError

@app.app.command("noisy")
def noisy():
    os.write(2, b"native words\\n")
    subprocess.run([sys.executable, "-c", "import sys; print('a child', file=sys.stderr)"])
    print("Python's words", file=sys.stderr)
    if os.environ["ENDS_IN"] == "crash":
        os.abort()
    if os.environ["ENDS_IN"] == "defect":
        raise ValueError("nobody expects this")
    if os.environ["ENDS_IN"] == "status":
        raise typer.Exit(3)
    raise QcoreError("no luck")

app.run()
"""


def noisy(argument: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NOISY, "noisy"]
    environ = {**os.environ, "TMPDIR": str(folder), "ENDS_IN": argument}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_what_native_code_and_children_write_goes_to_the_log_file(tmp_path: Path) -> None:
    done = noisy("", tmp_path)
    (log,) = tmp_path.iterdir()
    assert log.read_text() == "native words\na child\n"
    shown = f"Python's words\nqcore: no luck\nWhat the libraries said meanwhile: {log}\n"
    assert (done.returncode, done.stderr) == (1, shown)


def test_an_error_that_nobody_expects_has_its_traceback_and_names_the_log_file(
    tmp_path: Path,
) -> None:
    done = noisy("defect", tmp_path)
    (log,) = tmp_path.iterdir()
    assert log.read_text() == "native words\na child\n"
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith(
        "ValueError: nobody expects this\nNobody expected this error: please report all of it.\n"
        f"What the libraries said meanwhile: {log}\n"
    )


def test_a_status_that_a_command_chooses_leaves_no_log_file(tmp_path: Path) -> None:
    done = noisy("status", tmp_path)
    assert (done.returncode, done.stderr) == (3, "Python's words\n")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_of_the_command_itself_is_shown(tmp_path: Path) -> None:
    done = noisy("crash", tmp_path)
    assert "Fatal Python error: Aborted" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_answers_in_less_than_a_third_of_a_second() -> None:
    def seconds(code: str, expected: str) -> float:
        """Return the time on the processor: a busy machine makes others longer, not this."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert expected in done.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = min(seconds("import typer, rich.markdown, rich.table", "") for _ in range(3))
    # On a slow machine the libraries that draw it alone take most of that.
    assert min(seconds(CODE, "new-backend") for _ in range(3)) < max(0.3, 1.7 * libraries)


@pytest.mark.parametrize("arguments", [("--help",), ("backends",), ("new-backend", "tiny")])
def test_no_command_imports_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    listed = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    done = subprocess.run(
        [sys.executable, "-c", listed + CODE, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stderr == ""


def test_backends_are_listed_with_their_distributions(
    install: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good-dist", "good_backend", "", good="good_backend:Backend")  # type: ignore[operator]
    app.list_backends()
    assert "good  good-dist 1.0 (good_backend:Backend)" in capsys.readouterr().out


def test_without_a_backend_it_says_how_to_get_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "backends", dict)
    app.list_backends()
    assert "No backend is installed" in capsys.readouterr().out


def test_a_scaffold_is_named_after_the_backend_everywhere(tmp_path: Path) -> None:
    folder = scaffold.write_backend("my-npu", tmp_path / "somewhere")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "qcore-my-npu"
    assert project["project"]["entry-points"]["qcore.backends"] == {
        "my-npu": "qcore_my_npu:MyNpuBackend"
    }
    sources = sorted((folder / "src/qcore_my_npu").glob("*.py"))
    names = ["__init__.py", "backend.py", "program.py", "support.py"]
    assert [path.name for path in sources] == names
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "{{" not in text
            assert text.endswith("\n")
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_a_backend_that_cannot_be_written_whole_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = Path.write_text

    def full(self: Path, data: str, **more: str) -> int:
        if self.name == "pyproject.toml":
            raise OSError(28, "No space left on device")
        return write(self, data, **more)

    monkeypatch.setattr(Path, "write_text", full)
    done = CliRunner().invoke(app.app, ["new-backend", "x", "--directory", str(tmp_path / "x")])
    assert done.exit_code == 1
    assert "No space left on device. Free some space there" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["write_text", "rename"])
def test_an_interrupt_leaves_no_half_backend(
    at: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    act, done = getattr(Path, at), []

    def interrupted(self: Path, *arguments: object, **more: object) -> object:
        done.append(self)
        if at == "write_text" and len(done) < 3:
            return act(self, *arguments, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        scaffold.write_backend("my-npu", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_backend_is_written_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert (scaffold.write_backend("my-npu", tmp_path / "new") / "pyproject.toml").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("template", ["torch", "executorch"])
def test_scaffolded_code_is_clean(template: str, tmp_path: Path) -> None:
    folder = scaffold.write_backend("my-npu", tmp_path / "qcore-my-npu", template)
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length=100", folder],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My NPU", "Try 'my-npu'"),
        ("", "no name for a backend"),
        ("9", "no name for a backend"),
        ("a--b", "single hyphens"),
        ("quant", "which is the core"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match=says):
        scaffold.write_backend(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_taken_is_refused(tmp_path: Path, toy: object) -> None:
    assert "toy" in registry.backends()
    with pytest.raises(ScaffoldError, match="'toy' is taken by registered in this process"):
        scaffold.write_backend("toy", tmp_path / "new")


def test_a_scaffold_depends_on_what_brings_its_template(tmp_path: Path) -> None:
    for template, needs in (("torch", "qcore-quant"), ("executorch", "qcore-executorch")):
        folder = scaffold.write_backend("my-npu", tmp_path / template, template)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["dependencies"] == [f"{needs}>=0.1,<0.2"]
        has_format = "qcore.artifacts" in project["entry-points"]
        assert has_format == (template == "torch")


def test_a_template_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match=r"Did you mean 'executorch'\? There are: torch, exec"):
        scaffold.write_backend("my-npu", tmp_path / "new", "executorh")


def test_folders_that_nobody_asked_for_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="There is no folder .*mkdir -p"):
        scaffold.write_backend("my-npu", tmp_path / "no" / "such" / "folder")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ScaffoldError, match="is not empty.*--directory"):
        scaffold.write_backend("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_an_error_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qcore", "new-backend", "No Name"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("qcore: 'No Name' is no name for a backend")


def test_the_command_says_its_release_also_as_a_module() -> None:
    for arguments in (["-c", CODE], ["-m", "qcore"]):
        done = subprocess.run(
            [sys.executable, *arguments, "--version"], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == (f"qcore-quant {version('qcore-quant')}\n", "")


def test_a_command_of_a_distribution_is_found_by_its_entry_point(install: object) -> None:
    source = 'def greet(name: str) -> None:\n    "Greet."\n    print("hello", name)\n'
    install("greeter", "greeting", source, "qcore.commands", greet="greeting:greet")  # type: ignore[operator]
    assert CliRunner().invoke(app.app, ["greet", "you"]).stdout == "hello you\n"
    assert "Greet." in CliRunner().invoke(app.app, ["--help"]).stdout


def test_a_command_that_cannot_be_imported_says_so_and_spoils_no_other(install: object) -> None:
    install("bad", "bad_command", "import nowhere", "qcore.commands", bad="bad_command:f")  # type: ignore[operator]
    done = CliRunner().invoke(app.app, ["bad", "--anything", "at all"])
    assert done.exit_code == 1
    assert "The command 'bad' of bad cannot be used: ModuleNotFoundError" in done.stderr
    assert "Reinstall that distribution" in done.stderr
    assert CliRunner().invoke(app.app, ["backends"]).exit_code == 0


def test_a_mistyped_command_is_answered_with_what_is_close() -> None:
    done = CliRunner().invoke(app.app, ["bakends"])
    assert done.exit_code == 2
    assert "No such command 'bakends'. Did you mean 'backends'?" in done.stderr


def test_backends_are_listed_for_programs_too(toy: object) -> None:
    done = CliRunner().invoke(app.app, ["backends", "--json"])
    assert "toy" in [backend["name"] for backend in json.loads(done.stdout)]
    assert CliRunner().invoke(app.app, ["backends", "--quiet"]).output == ""
