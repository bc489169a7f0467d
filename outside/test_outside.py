"""What is installed from wheels works without this repository, and without the other plugins.

The environments hold nothing of this project but what is installed from its wheels. torch, torchao,
ExecuTorch and the rest are shared with the environment that runs the tests: its packages are linked
into a folder, those of this project left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from qcore.cli.scaffold import write_backend

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLE = ROOT / "examples" / "qcore_portable"
SCAFFOLD = "outsider"

# Names of files that installing this project leaves, in whatever way.
_OURS = ("qcore", "__editable__", "_qcore")


@frozen
class Environment:
    """An environment of its own, and an empty folder to work in."""

    root: Path
    folder: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def run(self, *command: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, and fail with what it printed if it fails."""
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        variables["PATH"] = f"{self.root / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={**variables, **options},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}"
        return done

    def code(self, text: str) -> str:
        """Run Python code and return what it printed."""
        return self.run(self.python, "-c", text).stdout.strip()

    def conformance(self, *arguments: str | Path) -> str:
        """Run pytest and return its last line."""
        options = ("-q", "--tb=short", "-p", "no:cacheprovider")
        done = self.run(self.python, "-m", "pytest", *options, *arguments)
        return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to all installed packages but those of this project."""
    folder = tmp_path_factory.mktemp("shared")
    for place in map(Path, sys.path):
        if place.name != "site-packages":
            continue
        for entry in place.iterdir():
            target = folder / entry.name
            if not entry.name.startswith(_OURS) and not target.exists():
                target.symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of the core, each plugin, the example and a scaffolded backend."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    copies = [sources / "core"]
    copies[0].mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copies[0])
    shutil.copytree(ROOT / "qcore", copies[0] / "qcore")
    for project in (*PLUGINS, EXAMPLE):
        copies.append(sources / project.name)
        left_out = shutil.ignore_patterns("*.egg-info", "build", "tests")
        shutil.copytree(project, copies[-1], ignore=left_out)
    copies.append(write_backend(SCAFFOLD, sources / SCAFFOLD))
    build = ["-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([sys.executable, *build, *copies], check=True)
    return folder


@pytest.fixture(scope="session")
def environment(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path, shared: Path
) -> Callable[..., Environment]:
    """Makes an environment with some distributions of this project, from wheels."""

    def make(*distributions: str) -> Environment:
        root = tmp_path_factory.mktemp("environment")
        venv.create(root, symlinks=True)
        (packages,) = root.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(f"{shared}\n")
        made = Environment(root, tmp_path_factory.mktemp("work"))
        for tool in ("pip", "pytest"):  # They are shared, and so have no command here.
            command = made.root / "bin" / tool
            command.write_text(f'#!/bin/sh\nexec {made.python} -m {tool} "$@"\n')
            command.chmod(0o755)
        install = ("pip", "install", "-qq", "--no-index", f"--find-links={wheels}")
        made.run(*install, "qcore-quant[testing]", *distributions)
        return made

    return make


Make = Callable[..., Environment]

LIST = "import qcore; print(*qcore.backends())"
BLOCK = re.compile(r"^```(?P<info>[^\n]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

# What tells most about a plugin in the least time: how it is found, and its first programs.
ALONE = "loads or listing or distribution or signatures or option or hashable or lower_returns"


@pytest.fixture(scope="session")
def core(environment: Make) -> Environment:
    """An environment with the core alone."""
    return environment()


class TestCoreAlone:
    def test_it_is_imported_from_where_it_was_installed(self, core: Environment) -> None:
        assert Path(core.code("import qcore; print(qcore.__file__)")).is_relative_to(core.root)

    def test_every_public_name_is_there(self, core: Environment) -> None:
        code = "import qcore; [getattr(qcore, name) for name in qcore.__all__]"
        assert core.code(code) == ""

    def test_the_schema_of_the_reports_comes_with_it(self, core: Environment) -> None:
        code = "from importlib.resources import files; print(files('qcore') / 'report/schema.json')"
        assert Path(core.code(code)).is_file()

    def test_it_lists_nothing_and_says_how_to_get_a_backend(self, core: Environment) -> None:
        assert core.code(LIST) == ""
        assert "No backend is installed" in core.run("qcore", "backends").stdout
        code = "import qcore\ntry: qcore.get_quantizer('xnnpack')\nexcept qcore.QcoreError as e: "
        assert "none is installed" in core.code(f"{code}print(e)")


def test_the_example_passes_its_tests(environment: Make) -> None:
    made = environment("qcore-portable")
    assert made.code(LIST) == "portable"
    shutil.copytree(EXAMPLE / "tests", made.folder / "tests")
    assert re.search(r"\d{3} passed", made.conformance("tests"))


def test_a_scaffolded_backend_passes_as_it_is(environment: Make) -> None:
    made = environment(f"qcore-{SCAFFOLD}")
    assert made.code(LIST) == SCAFFOLD
    command = ("--pyargs", "qcore.testing", "--qcore-backend", SCAFFOLD)
    assert re.search(r"\d{3} passed", made.conformance(*command))


def test_the_tutorial_ends_with_a_conforming_backend(environment: Make) -> None:
    made = environment()
    page = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    script, code = ["set -e"], []
    for block in BLOCK.finditer(page):
        title = re.search(r'title="(.+)"', block["info"])
        if title:
            (made.folder / "files").mkdir(exist_ok=True)
            kept = made.folder / "files" / str(len(script))
            kept.write_text(block["text"])
            script.append(f"cp {kept} {title[1]}")
        elif block["info"] == "sh":
            script.append(block["text"])
        else:
            # Later blocks go on where the ones before them ended.
            code.append(block["text"])
            kept = made.folder / f"{len(script)}.py"
            kept.write_text("\n".join(code))
            script.append(f"python {kept}")
    # Nothing is fetched: what the commands ask for is here.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    said = made.run("bash", "-c", "\n".join(script), **offline).stdout
    shown = re.search(r"^    tiny: .*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert shown
    assert re.sub(r"^    ", "", shown[0], flags=re.MULTILINE).strip() in said
    assert re.search(r"\d{3} passed", said)


@pytest.mark.parametrize("plugin", [path.name for path in PLUGINS])
def test_a_plugin_works_alone_with_the_core(plugin: str, environment: Make) -> None:
    made = environment(plugin.replace("_", "-"))
    project = tomllib.loads((ROOT / "plugins" / plugin / "pyproject.toml").read_text("utf-8"))
    declared = project["project"].get("entry-points", {}).get("qcore.backends", {})
    names = made.code(LIST).split()
    assert names == sorted(declared)
    assert Path(made.code(f"import {plugin}; print({plugin}.__file__)")).is_relative_to(made.root)
    for name in names:
        command = ("--pyargs", "qcore.testing", "--qcore-backend", name, "-k", ALONE)
        assert " passed" in made.conformance(*command)
