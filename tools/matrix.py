"""Run the fast tests with each Python and each ExecuTorch that qcore supports.

Each environment is made beside the first, in ``build/matrix``: one for every other Python, and one
for every other ExecuTorch, which takes the rest of its packages from ``.venv``. One that cannot be
made is a row of the table, with the reason, and a failure; a Python that this machine lacks is said
at the end, and is a failure with ``--require-all``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "matrix"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
TESTS = [ROOT / "tests", *(plugin / "tests" for plugin in PLUGINS)]
#: What shows within minutes that an environment works: imports, changes to libraries, two models.
SMOKE = [
    ROOT / "tests" / "test_imports.py",
    *(tests / "test_library_changes.py" for tests in TESTS),
    ROOT / "plugins" / "qcore_xnnpack" / "tests" / "test_threads.py",
]
EXTRAS = "cli,dev,demo,language-models"
# Prints the distributions that ExecuTorch needs in other versions than there are, with the needs.
_UNFIT = """
from importlib.metadata import PackageNotFoundError, requires, version
from packaging.requirements import Requirement
extras = ("", "ethos-u", "vgf")
for need in map(Requirement, requires("executorch")):
    if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
        try:
            fits = need.specifier.contains(version(need.name), prereleases=True)
        except PackageNotFoundError:
            continue
        if not fits:
            print(need.name, f"{need.name}{need.specifier}")
"""


class CannotBeMade(Exception):
    """An environment is not to be had."""


class NoInterpreter(CannotBeMade):
    """This machine has no such Python."""


@frozen
class Environment:
    """What the tests run in.

    Attributes:
        python: Version of Python, such as ``3.12``.
        executorch: Version of ExecuTorch.
    """

    python: str
    executorch: str

    def __str__(self) -> str:
        return f"Python {self.python}, ExecuTorch {self.executorch}"

    @property
    def folder(self) -> Path:
        """Where it is made: torch exports otherwise what is called from a path with its name."""
        return FOLDER / f"python{self.python}-et{self.executorch}"


@frozen
class Row:
    """What came of the tests in one environment."""

    environment: Environment
    passed: int = 0
    skipped: Counter[str] = field(factory=Counter)
    failed: Sequence[str] = ()
    seconds: float = 0.0
    reason: str = ""
    lacking: bool = False

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong here, other than that the machine lacks a Python."""
        return bool(self.failed or (self.reason and not self.lacking))


def pinned(package: str) -> str:
    """Return the version of a package that ``constraints.txt`` pins."""
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def environments() -> list[Environment]:
    """List what is supported, the environment that ``make`` sets up first."""
    this, executorch = "{}.{}".format(*sys.version_info), pinned("executorch")
    others = [Environment(version, executorch) for version in ("3.11", "3.12", "3.13")]
    first = Environment(this, executorch)
    return [first, *(e for e in others if e != first), Environment(this, "1.5.1")]


def interpreter(version: str) -> str:
    """Return the command of a Python: on the PATH, or pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        root = Path(_output("pyenv", "root").strip())
        candidates += map(str, sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True))
    for candidate in filter(None, candidates):
        # A shim of pyenv is on the PATH whether there is such a version or not.
        probe = "import sys; print('{}.{}'.format(*sys.version_info))"
        if _output(candidate, "-c", probe).strip() == version:
            return candidate
    raise NoInterpreter(f"there is no python{version} on this machine")


def make(environment: Environment) -> Path:
    """Make an environment, or take the one that was made before; return its Python."""
    this = environments()[0]
    if environment == this:
        return Path(sys.executable)
    python, done = environment.folder / "bin" / "python", environment.folder / "made"
    wanted = _declared()
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(environment.folder, ignore_errors=True)
    base = interpreter(environment.python)
    if environment.python == this.python:
        # Its pip is that of .venv: another beside it would mix their files.
        _run(base, "-m", "venv", "--without-pip", str(environment.folder))
        _link_packages(environment)
        _pip(python, "--no-deps", f"executorch=={environment.executorch}", "py-cpuinfo")
        if unfit := _unfit(python):
            _unlink(environment, [name for name, _ in unfit])
            _pip(python, "--no-deps", *(need for _, need in unfit))
    else:
        _run(base, "-m", "venv", str(environment.folder))
        _pip(python, "torch", "torchao", "executorch")
        editable = [part for plugin in PLUGINS for part in ("--editable", str(plugin))]
        _pip(python, "--editable", f"{ROOT}[{EXTRAS}]", *editable)
    done.write_text(wanted)
    return python


def _declared() -> str:
    """Return a digest of what the distributions declare: an environment of before lacks the new."""
    files = [ROOT / "constraints.txt", *(p / "pyproject.toml" for p in (ROOT, *PLUGINS))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _link_packages(environment: Environment) -> None:
    """Share the packages and tools of ``.venv``, but ExecuTorch: another version is installed."""
    inside = Path("lib") / f"python{environment.python}" / "site-packages"
    target = environment.folder / inside
    for package in (Path(sys.prefix) / inside).iterdir():
        link = target / package.name
        if not link.exists() and not package.name.lower().startswith("executorch"):
            link.symlink_to(package)
    (environment.folder / "bin" / "ruff").symlink_to(Path(sys.prefix) / "bin" / "ruff")


def _unfit(python: Path) -> list[tuple[str, str]]:
    """Return what the new ExecuTorch needs in another version than ``.venv`` has."""
    lines = _output(str(python), "-c", _UNFIT).splitlines()
    return [(name, need) for name, _, need in (line.partition(" ") for line in lines)]


def _unlink(environment: Environment, names: Sequence[str]) -> None:
    """Take the links of distributions away, which pip would follow and empty ``.venv``."""
    target = environment.folder / "lib" / f"python{environment.python}" / "site-packages"
    for name in names:
        for info in target.glob(f"{re.sub(r'[-_.]+', '_', name)}-*.dist-info"):
            record = (info / "RECORD").read_text(encoding="utf-8").splitlines()
            for top in {line.partition(",")[0].partition("/")[0] for line in record}:
                link = target / top
                if link.is_symlink():
                    link.unlink()


def _pip(python: Path, *arguments: str) -> None:
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if "--no-deps" not in arguments:
        environ["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    _run(str(python), "-m", "pip", "install", "-qq", *arguments, environ=environ)


def _run(*command: str, environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CannotBeMade(f"{' '.join(command[1:4])}: {lines[-1]}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def tested(environment: Environment, tests: Sequence[Path], workers: int) -> Row:
    """Run the fast tests in an environment."""
    start = time.monotonic()
    try:
        python = make(environment)
    except CannotBeMade as error:
        lacking = isinstance(error, NoInterpreter)
        return Row(environment, reason=f"not made: {error}", lacking=lacking)
    results = FOLDER / f"{environment.folder.name}.xml"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", f"--junit-xml={results}"]
    command += ["-p", "no:cacheprovider"]
    if workers > 1:
        command += ["-n", str(workers), "--dist", "worksteal"]
    path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
    log = results.with_suffix(".log")
    with log.open("w") as file:
        subprocess.run(
            [*command, *map(str, tests)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if not results.exists():
        return Row(environment, failed=["every test"], reason=f"pytest ended early, see {log}")
    return _read(environment, results, time.monotonic() - start)


def _read(environment: Environment, results: Path, seconds: float) -> Row:
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ET.parse(results).iter("testcase"):
        outcome = next((one for one in case if one.tag in ("skipped", "failure", "error")), None)
        if outcome is None:
            passed += 1
        elif outcome.tag == "skipped":
            skipped[outcome.get("message", "")] += 1
        else:
            failed.append(f"{case.get('classname')}.{case.get('name')}")
    return Row(environment, passed, skipped, failed, seconds)


def table(rows: Sequence[Row]) -> str:
    """Write one line for each environment, then the reasons."""
    lines = [f"{'environment':32}{'passed':>8}{'skipped':>9}{'failed':>8}{'seconds':>9}"]
    for row in rows:
        figures = f"{row.passed:8}{row.skipped.total():9}{len(row.failed):8}{row.seconds:9.0f}"
        lines.append(f"{row.environment!s:32}{figures if row.seconds else '  ' + row.reason}")
    for row in rows:
        lines += [f"\n{row.environment}" for _ in (0,) if row.skipped or row.failed]
        lines += [f"  failed: {name}" for name in row.failed]
        lines += [f"  skipped {n:4}: {why}" for why, n in row.skipped.most_common()]
    return "\n".join(lines)


def main() -> int:
    """Run what the command line says; return 1 where a test failed or nothing could be tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    smoke = "a handful of tests in the environments that are there or made within seconds"
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--workers", type=int, default=1, help="processes for the tests")
    require = "fail where this machine lacks a Python, too"
    parser.add_argument("--require-all", action="store_true", help=require)
    options = parser.parse_args()
    first, *others = environments()
    chosen, left = [first, *others], []
    if options.smoke:
        chosen = [e for e in others if e.python == first.python or (e.folder / "made").exists()]
        left = [e for e in others if e not in chosen]
    tests = [path for path in (SMOKE if options.smoke else TESTS) if path.exists()]
    rows = [tested(environment, tests, options.workers) for environment in chosen]
    print(table(rows))
    lacking = [row for row in rows if row.lacking]
    for row in lacking:
        print(f"NOT TRIED: {row.environment}: {row.reason}", file=sys.stderr)
    for environment in left:
        print(
            f"NOT TRIED: {environment}: it takes minutes to make, once: make matrix",
            file=sys.stderr,
        )
    bad = any(row.is_bad for row in rows) or not any(row.passed for row in rows)
    return int(bad or (options.require_all and bool(lacking)))


if __name__ == "__main__":
    sys.exit(main())
