"""What is installed from wheels works without this repository, and without the other plugins.

The environments hold nothing of this project but what is installed from its wheels, and of others
what these declare, directly or not: torch and the rest are links to the packages of the environment
that runs the tests. What is imported and not declared is missing.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qcore.cli.scaffold import write_backend

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLES = [ROOT / "examples" / name for name in ("qcore_integer", "qcore_portable")]
# By template, a backend of that name.
SCAFFOLDS = {"torch": "outsider", "executorch": "on-executorch"}

# What installs a distribution from its sources, whatever that declares.
_TOOLS = ("pip", "setuptools")


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
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of the core, each plugin and example, and a scaffolded backend."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    copies = [sources / "core"]
    copies[0].mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copies[0])
    shutil.copytree(ROOT / "qcore", copies[0] / "qcore")
    for project in (*PLUGINS, *EXAMPLES):
        copies.append(sources / project.name)
        left_out = shutil.ignore_patterns("*.egg-info", "build", "tests")
        shutil.copytree(project, copies[-1], ignore=left_out)
    for template, name in SCAFFOLDS.items():
        copies.append(write_backend(name, sources / name, template))
    build = ["-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([sys.executable, *build, *copies], check=True)
    return folder


def _declared(wanted: Iterable[str], wheels: Path) -> dict[str, Distribution]:
    """Resolve requirements to what they need, transitively, by name.

    Distributions of this project are those of the wheels, all others those installed here.
    """
    ours = {}
    for wheel in wheels.glob("*.whl"):
        archive = zipfile.Path(wheel)
        (info,) = (path for path in archive.iterdir() if path.name.endswith(".dist-info"))
        found = PathDistribution(info)
        ours[canonicalize_name(found.name)] = found
    resolved: dict[str, Distribution] = {}
    seen, pending = set(), [Requirement(text) for text in wanted]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            resolved[name] = ours.get(name) or distribution(name)
            needs = map(Requirement, resolved[name].requires or ())
            pending += (n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra}))
    return {name: found for name, found in resolved.items() if name not in ours}


def _tops(found: Distribution) -> Iterator[str]:
    """Return the files and folders of a distribution that lie in site-packages itself."""
    names = {path.parts[0] for path in found.files or ()}
    return (name for name in names if name not in ("..", "__pycache__"))


def _link(found: Iterable[Distribution], folder: Path) -> None:
    """Link distributions into a folder, and nothing beside them."""
    owners = Counter(name for installed in distributions() for name in set(_tops(installed)))
    for each in found:
        for name in _tops(each):
            source = Path(str(each.locate_file(name)))
            if owners[name] == 1:
                (folder / name).symlink_to(source)
                continue
            # Several distributions have files in this folder.
            for file in (path for path in each.files or () if path.parts[0] == name):
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(file.locate())))


@pytest.fixture(scope="session")
def environment(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path
) -> Callable[..., Environment]:
    """Makes an environment with some distributions of this project, from wheels."""

    def make(*wanted: str) -> Environment:
        root = tmp_path_factory.mktemp("environment")
        venv.create(root, symlinks=True)
        (packages,) = root.glob("lib/python*/site-packages")
        _link(_declared((*wanted, *_TOOLS), wheels).values(), packages)
        made = Environment(root, tmp_path_factory.mktemp("work"))
        for tool in ("pip", "pytest"):  # Links have no command.
            command = made.root / "bin" / tool
            command.write_text(f'#!/bin/sh\nexec {made.python} -m {tool} "$@"\n')
            command.chmod(0o755)
        install = ("pip", "install", "-qq", "--no-index", f"--find-links={wheels}")
        made.run(*install, *wanted)
        return made

    return make


Make = Callable[..., Environment]

LIST = "import qcore; print(*qcore.backends())"
BLOCK = re.compile(r"^```(?P<info>[^\n]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

# What tells most about a plugin in the least time: how it is found, and its first programs.
ALONE = "loads or listing or distribution or signatures or option or hashable or lower_returns"


@pytest.fixture(scope="session")
def core(environment: Make) -> Environment:
    """An environment with the core alone, without extras."""
    return environment("qcore-quant")


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
        code = "import qcore\ntry: qcore.get_quantizer('xnnpack')\nexcept qcore.QcoreError as e: "
        assert "none is installed" in core.code(f"{code}print(e)")

    def test_the_command_says_what_it_needs(self, core: Environment) -> None:
        command = "import sys, qcore.cli; sys.argv = ['qcore', 'backends']; qcore.cli.main()"
        said = core.code(f"try: exec({command!r})\nexcept SystemExit as e: print(e.code)")
        assert 'pip install "qcore-quant[cli]"' in said

    def test_nothing_of_a_backend_is_there(self, core: Environment) -> None:
        code = "import importlib.util as u; print(*filter(u.find_spec, ['executorch', 'typer']))"
        assert core.code(code) == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_passes_its_tests(example: Path, environment: Make) -> None:
    made = environment(f"{example.name.replace('_', '-')}[test]")
    assert example.name.removeprefix("qcore_") in made.code(LIST).split()
    shutil.copytree(example / "tests", made.folder / "tests")
    assert re.search(r"\b\d{3} passed(, \d+ skipped)? in", made.conformance("tests"))


def test_a_backend_with_a_format_of_its_own_needs_no_other(environment: Make) -> None:
    made = environment("qcore-integer")
    code = "import importlib.util as u; print(u.find_spec('executorch'), u.find_spec('pytest'))"
    assert made.code(code) == "None None"


@pytest.mark.parametrize("name", SCAFFOLDS.values(), ids=SCAFFOLDS)
def test_a_scaffolded_backend_passes_as_it_is(name: str, environment: Make) -> None:
    made = environment(f"qcore-{name}[test]")
    assert made.code(LIST) == name
    command = ("--pyargs", "qcore.testing", "--qcore-backend", name)
    assert re.search(r"\b\d{3} passed(, \d+ skipped)? in", made.conformance(*command))


def commands_of(page: str) -> list[str]:
    """Return the commands of a page, each on one line."""
    text = "".join(block["text"] for block in BLOCK.finditer(page) if block["info"] == "sh")
    lines = text.replace("\\\n", "").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def follow(page: str, made: Environment) -> str:
    """Write the files of a page and run its commands and its code, and return what they print."""
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
    return made.run("bash", "-c", "\n".join(script), **offline).stdout


def test_the_tutorial_ends_with_a_conforming_backend(environment: Make) -> None:
    made = environment("qcore-quant[cli,testing]", "qcore-executorch")
    page = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    said = follow(page, made)
    shown = re.search(r"^    tiny: .*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert shown
    assert re.sub(r"^    ", "", shown[0], flags=re.MULTILINE).strip() in said
    assert re.search(r"\d{3} passed", said)


def test_the_first_page_ends_with_a_verified_program(environment: Make) -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    commands = commands_of(page)
    assert re.search(rf"^{len(commands)} commands\b", page, re.MULTILINE)
    (install,) = (command for command in commands if command.startswith("pip install"))
    made = environment(shlex.split(install)[-1])
    _, _, rest = page.partition(f"{install}\n")  # What is before it, the fixture did.
    said = follow(f"```sh\n{rest}", made)
    assert re.search(r"^ok: \d+\.\d dB .* asked for", said, re.MULTILINE)
    assert (made.folder / "net.html").is_file()


def _project(folder: Path) -> dict[str, Any]:
    text = (folder / "pyproject.toml").read_text("utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def _backends_of(name: str, projects: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the backends of a distribution, then those of what it requires."""
    yield list(projects[name].get("entry-points", {}).get("qcore.backends", {}))
    for requirement in projects[name]["dependencies"]:
        required = canonicalize_name(Requirement(requirement).name)
        if required in projects:
            yield from _backends_of(required, projects)


@pytest.mark.parametrize("plugin", [path.name for path in PLUGINS])
def test_a_plugin_works_alone_with_the_core(plugin: str, environment: Make) -> None:
    made = environment(plugin.replace("_", "-"), "qcore-quant[testing]")
    projects = {path.name.replace("_", "-"): _project(path) for path in PLUGINS}
    own, *required = _backends_of(plugin.replace("_", "-"), projects)
    assert made.code(LIST).split() == sorted({*own, *(name for one in required for name in one)})
    assert Path(made.code(f"import {plugin}; print({plugin}.__file__)")).is_relative_to(made.root)
    if plugin == "qcore_analysis":
        assert made.run(made.root / "bin" / "qcore", "doctor", "--quick").stdout.startswith("ok")
    for name in own:
        command = ("--pyargs", "qcore.testing", "--qcore-backend", name, "-k", ALONE)
        assert " passed" in made.conformance(*command)


def test_every_wheel_is_typed_and_says_its_licence_and_pythons(wheels: Path) -> None:
    for name in ("qcore_quant", *(path.name for path in PLUGINS)):
        (wheel,) = wheels.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            (info,) = (one for one in names if one.endswith(".dist-info/METADATA"))
            metadata = archive.read(info).decode()
        assert any(one.endswith("/py.typed") for one in names), wheel
        assert any(one.endswith(".dist-info/licenses/LICENSE") for one in names), wheel
        assert re.search(r"^Requires-Python: .*>=3\.11", metadata, re.MULTILINE), wheel
        assert "License-Expression: Apache-2.0" in metadata, wheel


def test_the_extras_bring_the_backends_and_what_they_need(wheels: Path) -> None:
    extras = _project(ROOT)["optional-dependencies"]
    names = {path.name.removeprefix("qcore_") for path in PLUGINS} - {"executorch"}
    assert names <= set(extras)
    assert {"executorch", "ethos-u-vela", "jinja2", "typer"} <= set(
        map(canonicalize_name, _declared(["qcore-quant[all]"], wheels))
    )


def test_all_extras_together_are_installed_by_pip_and_fit(environment: Make) -> None:
    # pip resolves what all of them declare, against the versions that the tests run with.
    made = environment(f"qcore-quant[{','.join(_project(ROOT)['optional-dependencies'])}]")
    assert "No broken requirements" in made.run("pip", "check").stdout
    declared = (_project(path).get("entry-points", {}) for path in PLUGINS)
    names = [name for points in declared for name in points.get("qcore.backends", {})]
    assert made.code(LIST).split() == sorted(names)
    assert "doctor" in made.run(made.root / "bin" / "qcore", "--help").stdout


def test_a_compiler_of_ones_own_is_written_as_its_page_says(environment: Make) -> None:
    made = environment("qcore-quant[cli,testing]")
    page = (ROOT / "docs" / "writing-a-compiler.md").read_text(encoding="utf-8")
    said = follow(page, made)
    assert "delegated: aten.linear.default x2, aten.relu.default x1" in said
    assert re.search(r"\d\d passed, \d+ skipped", said)


SHOP = """
import torch

def net():
    torch.manual_seed(0)
    conv, linear = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), pool, torch.nn.Flatten(), linear)

samples = list(torch.rand(8, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
others = list(torch.rand(4, 1, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
"""


@pytest.mark.parametrize(
    ("backend", "options"),
    [("xnnpack", ()), ("ethosu", ("--option", "target=ethos-u85-256"))],
)
def test_the_commands_for_ci_make_the_bytes_that_a_recipe_made_in_another_environment(
    backend: str, options: tuple[str, ...], environment: Make
) -> None:
    first, second = (environment("qcore-analysis", f"qcore-{backend}") for _ in range(2))
    for made in (first, second):
        (made.folder / "shop.py").write_text(SHOP)
    chosen = ("--backend", backend, *options, "--calibration", "shop:samples")
    written = ("-o", "net.pte", "--save-recipe", "net.toml", "--quiet")
    first.run("qcore", "quantize", "shop:net", *chosen, *written, PYTHONHASHSEED="1")
    shutil.copy(first.folder / "net.toml", second.folder)
    page = (ROOT / "docs" / "continuous-integration.md").read_text(encoding="utf-8")
    second.run("bash", "-c", "\n".join(("set -e", *commands_of(page))), PYTHONHASHSEED="2")
    assert (second.folder / "net.pte").read_bytes() == (first.folder / "net.pte").read_bytes()
