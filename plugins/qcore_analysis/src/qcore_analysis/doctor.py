"""Whether an installation fits together: findings, each with the command that mends it.

Nothing here imports torch. What could crash or hang runs in a child process.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from operator import and_
from pathlib import Path
from platform import python_version
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import qcore
from qcore.cli.progress import Over
from qcore.report import figure
from qcore_analysis.errors import InputError

__all__ = ["BROKEN", "CHECKS", "WARNING", "BackendFacts", "Diagnosis", "Finding", "diagnose"]

CHECKS: Final = "qcore.doctor"
"""Entry-point group: a function without arguments that yields (problem, fix) pairs of strings.

A third string, ``"warning"``, says that only a part cannot be used. It runs in a child process.
"""

BROKEN: Final = "broken"
WARNING: Final = "warning"

_TIMEOUT_S: Final = 180
_HEADER: Final = re.compile(r"^(Name|Version|Requires-Python|Requires-Dist): (.*)$", re.MULTILINE)
# Lowering EfficientNet-Lite0 takes 0.7 GiB of memory; compilers write their graphs to disk.
_LEAST: Final = 2 * 1024**3


@attrs.frozen
class Finding:
    """Something that is wrong.

    Attributes:
        about: The distribution, plugin or resource.
        problem: What is wrong.
        fix: The command that mends it.
        level: ``broken``, or ``warning`` where only a part cannot be used.
    """

    about: str
    problem: str
    fix: str
    level: str = BROKEN

    def __str__(self) -> str:
        return f"{self.level}: {self.about}: {self.problem}\n    {self.fix}"


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class BackendFacts:
    """What a backend says of itself once it is loaded, which the conformance suite holds it to.

    Attributes:
        name: The backend.
        distribution: What it comes with.
        api_version: The version of the hooks that it was written for.
        hooks: The hooks that it implements.
        schemes: Schemes of the PT2E flow.
        training: How many of them are for training.
        source_schemes: Schemes of ``quantize_``.
        options: What ``get_quantizer`` takes for it.
        partial: Whether parts of a model may stay in float.
        runs: Whether programs are executed on this machine.
        verifies: Whether programs are verified without being executed.
        dynamic_shapes: Whether sizes of inputs may vary.
    """

    name: str
    distribution: str
    api_version: int
    hooks: tuple[str, ...] = attrs.field(converter=_texts)
    schemes: int
    training: int
    source_schemes: int
    options: tuple[str, ...] = attrs.field(converter=_texts)
    partial: bool
    runs: bool
    verifies: bool
    dynamic_shapes: bool

    def __str__(self) -> str:
        without = "programs are verified, not run" if self.verifies else "programs do not run here"
        said = (
            f"{self.schemes} schemes, {self.training} of them for training",
            f"{self.source_schemes} of quantize_" if self.source_schemes else "",
            "parts in float" if self.partial else "whole models",
            "programs run here" if self.runs else without,
            "sizes may vary" if self.dynamic_shapes else "fixed sizes",
            f"options {', '.join(self.options)}" if self.options else "",
            f"hooks of version {self.api_version}: {', '.join(self.hooks)}",
        )
        return f"{self.name}: {'; '.join(filter(None, said))}"


@attrs.frozen
class Diagnosis:
    """The answer of ``qcore doctor``: what was looked at and what was found.

    Attributes:
        versions: Version by distribution: those of qcore and what they name.
        checked: The distributions whose plugins were loaded, each on its own; none where quick.
        findings: What is wrong, the broken first.
        backends: What the backends that were loaded say of themselves.
    """

    versions: dict[str, str]
    checked: tuple[str, ...]
    findings: tuple[Finding, ...]
    backends: tuple[BackendFacts, ...] = ()

    @figure
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return all(finding.level != BROKEN for finding in self.findings)


def diagnose(
    quick: bool = False,
    only: Sequence[str] = (),
    timeout_s: float = _TIMEOUT_S,
    over: Over = iter,
) -> Diagnosis:
    """Look for what is wrong with the installation.

    Args:
        quick: Whether to import nothing: versions, conflicts and resources only.
        only: Distributions whose plugins are loaded; by default all.
        timeout_s: Seconds that loading the plugins of one distribution may take.
        over: Shows how many of them there were.

    Returns:
        What was found.

    Raises:
        InputError: One of ``only`` is not installed.
    """
    installed = [_Installed.of(one) for one in metadata.distributions()]
    by_name: dict[str, _Installed] = {}
    for one in installed:
        by_name.setdefault(one.key, one)  # The first on the path is what is imported.
    ours = [one for one in by_name.values() if one.key == "qcore-quant" or one.has_plugins]
    versions = {one.name: one.version for one in ours}
    findings = [*_versions(ours, by_name, versions), *_twice(installed), *_conflicts()]
    findings += _resources()
    loadable = sorted(one.name for one in ours if one.has_plugins)
    for name in only:
        if name not in loadable:
            hint = f"Those with plugins are: {', '.join(loadable)}."
            raise InputError(f"No distribution {name!r} with plugins is installed. {hint}")
    names = [] if quick else list(only) or loadable
    facts: list[BackendFacts] = []
    # Importing torch takes most of the time, and one core.
    with ThreadPoolExecutor(2) as pool:
        for answer in over([pool.submit(_child, name, timeout_s) for name in names]):
            wrong, told = answer.result()
            findings += wrong
            facts += told
    ordered = sorted(findings, key=lambda finding: finding.level != BROKEN)
    return Diagnosis(versions, tuple(names), tuple(ordered), tuple(facts))


@attrs.frozen
class _Installed:
    """What the metadata of a distribution say; reading their long descriptions takes a second."""

    name: str
    version: str
    python: str
    needs: tuple[str, ...]
    folder: str
    has_plugins: bool

    @classmethod
    def of(cls, found: Any) -> _Installed:
        text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
        headers: dict[str, list[str]] = {}
        for key, value in _HEADER.findall(text.partition("\n\n")[0]):
            headers.setdefault(key, []).append(value)
        return cls(
            headers.get("Name", [""])[0],
            headers.get("Version", [""])[0],
            headers.get("Requires-Python", [""])[0],
            tuple(headers.get("Requires-Dist", ())),
            str(found.locate_file("")),
            "[qcore." in (found.read_text("entry_points.txt") or ""),
        )

    @property
    def key(self) -> str:
        return canonicalize_name(self.name)


def _versions(
    ours: Sequence[_Installed], installed: Mapping[str, _Installed], found: dict[str, str]
) -> Iterator[Finding]:
    """Compare what distributions declare with what is installed, all the way down.

    Args:
        ours: Where to begin.
        installed: All, by canonical name.
        found: Takes the version of each that is needed.
    """
    needs: dict[str, list[tuple[str, Requirement]]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()

    def collect(owner: _Installed, extras: frozenset[str]) -> None:
        if (owner.key, extras) in seen:
            return
        seen.add((owner.key, extras))
        for text in owner.needs:
            spelled = canonicalize_name(text) if extras else ""
            named = frozenset(extra for extra in extras if extra in spelled)
            if "extra ==" in text and not named:
                continue  # Most are; reading them takes longer than all else.
            need = _requirement(text, named)
            if need is None:
                continue
            key = canonicalize_name(need.name)
            needs.setdefault(key, []).append((owner.name, need))
            if key in installed:
                collect(installed[key], frozenset(map(canonicalize_name, need.extras)))

    for owner in ours:
        if owner.python and python_version() not in SpecifierSet(owner.python):
            problem = f"needs Python {owner.python}, and this is {python_version()}"
            yield Finding(owner.name, problem, "python3.11 -m venv .venv  # and install it there")
        collect(owner, frozenset())
    for key, wanting in needs.items():
        version = installed[key].version if key in installed else None
        if version is not None:
            found[installed[key].name] = version
        unmet = [
            f"{owner} needs {need.specifier or 'it'}"
            for owner, need in wanting
            if version is None or not need.specifier.contains(version, prereleases=True)
        ]
        if unmet:
            extras = sorted({extra for _, need in wanting for extra in need.extras})
            asked = f"{key}[{','.join(extras)}]" if extras else key
            # All that is asked of it: a version that pleases one alone would break another.
            specifiers = functools.reduce(and_, (need.specifier for _, need in wanting))
            state = f"{version} is installed" if version else "it is not installed"
            problem = f"{state}, and {', '.join(dict.fromkeys(unmet))}"
            yield Finding(key, problem, _install(key, f"'{asked}{specifiers}'"))


@functools.cache
def _requirement(text: str, extras: frozenset[str]) -> Requirement | None:
    """Return what is required where it applies here; many distributions require the same."""
    need = Requirement(text)
    wanted = [{"extra": extra} for extra in extras or {""}]
    return need if not need.marker or any(map(need.marker.evaluate, wanted)) else None


def _twice(installed: Sequence[_Installed]) -> Iterator[Finding]:
    """Find distributions of which two versions lie in one folder: one overwrote the other's files.

    A copy in another folder is hidden by the first on the path, as an editable install hides one.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for one in installed:
        found.setdefault((one.folder, one.key), set()).add(one.version)
    for (_, name), versions in found.items():
        if len(versions) > 1:
            both = " and ".join(sorted(versions))
            uninstall = f"pip uninstall -y {name}"
            fix = f"{uninstall} && {uninstall} && {_install(name, name)}"
            yield Finding(name, f"versions {both} lie in one folder, and files are mixed", fix)


def _conflicts() -> Iterator[Finding]:
    found = qcore.backends()
    for info in found.values():
        if info.is_conflict:
            last = info.origins[-1].split()[0]
            problem = f"several distributions claim it: {'; '.join(info.origins)}"
            yield Finding(f"backend {info.name}", problem, f"pip uninstall {last}")
    if not found:
        problem = "none is installed: nothing can be quantized"
        fix = _install("qcore-xnnpack", "qcore-xnnpack")
        yield Finding("backends", problem, fix, WARNING)


def _install(name: str, asked: str, *options: str) -> str:
    """Return the command that installs a distribution, from where what is installed came from.

    Args:
        name: Its canonical name.
        asked: The requirement, as a shell takes it.
        *options: Of ``pip install``.
    """
    command = " ".join(("pip install", *options))
    if not name.startswith("qcore-"):
        return f"{command} {asked}"
    for owner in (name, "qcore-quant", "qcore-analysis"):
        for found in metadata.distributions(name=owner):
            place = json.loads(found.read_text("direct_url.json") or "{}")
            source = _beside(place, name, asked, own=owner == name)
            if source:
                return f"{command} {source}"
    # Where a wheel was found by its name, nothing says where that was.
    return f"{command} {asked}  # add --find-links FOLDER if its wheel is on no index"


def _beside(place: Mapping[str, Any], name: str, asked: str, *, own: bool) -> str:
    """Return what pip takes to install a distribution from the place of one that is installed.

    Args:
        place: What ``direct_url.json`` of that one says.
        name: The name of the distribution.
        asked: The requirement, as a shell takes it.
        own: Whether it is the installed one itself.

    Returns:
        The arguments; empty where it is not there.
    """
    url = place.get("url", "")
    path, module = Path(unquote(urlsplit(url).path)), name.replace("-", "_")
    if "vcs_info" in place and own:
        vcs, folder = place["vcs_info"], place.get("subdirectory", "")
        part = f"#subdirectory={folder}" if folder else ""
        return shlex.quote(f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{part}")
    if "archive_info" in place and any(path.parent.glob(f"{module}-*.whl")):
        return f"--find-links {shlex.quote(str(path.parent))} {asked}"
    if "dir_info" in place:
        editable = "--editable " if place["dir_info"].get("editable") else ""
        for folder in (path,) if own else (path.with_name(module), path / "plugins" / module):
            if (folder / "pyproject.toml").exists():
                return f"{editable}{shlex.quote(str(folder))}"
    return ""


def _resources() -> Iterator[Finding]:
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = 'export TMPDIR="$HOME/tmp" && mkdir -p "$TMPDIR"'
        yield Finding("disk", f"no folder for temporary files can be written: {error}", fix)
    else:
        if free < _LEAST:
            problem = f"{free / 1024**3:.1f} GiB are free in {folder}; compilers may need 2"
            yield Finding("disk", problem, 'export TMPDIR="$HOME/tmp"  # or free space', WARNING)
    available = _available_memory()
    if available is not None and available < _LEAST:
        problem = f"{available / 1024**3:.1f} GiB are available; lowering a model may need 2"
        yield Finding(
            "memory", problem, "ps aux --sort=-rss | head  # and end what you can", WARNING
        )


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None


def _child(name: str, timeout_s: float) -> tuple[list[Finding], list[BackendFacts]]:
    """Load a distribution's plugins and run its checks where a crash takes nothing else down."""
    fix = _install(canonicalize_name(name), name, "--force-reinstall")
    command = [sys.executable, "-m", "qcore_analysis._doctor_child", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        wrong, facts = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [Finding(name, f"it did not load within {timeout_s:g} s", fix)], []
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return [Finding(name, f"loading it ends the process ({done.returncode}): {said}", fix)], []
    findings = [Finding(name, problem, own or fix, *level) for problem, own, *level in wrong]
    return findings, [BackendFacts(**told) for told in facts]
