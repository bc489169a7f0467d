"""Writing the distribution of a new backend."""

from __future__ import annotations

import importlib.resources
import re
import tempfile
from importlib import metadata
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from attrs import frozen

from qcore.errors import ScaffoldError, near_misses
from qcore.registry import backends, entry_points

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES", "write_backend"]

TEMPLATES: Final = "qcore.templates"
"""Entry-point group of templates: each names a package with files that differ from the core's."""

DEFAULT_TEMPLATE: Final = "torch"

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")

# Template -> the file it becomes; all others are modules of the package.
_PLACES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "init.py": "src/{package}/__init__.py",
    "test_conformance.py": "tests/test_conformance.py",
    "ci.yml": ".github/workflows/tests.yml",
}


@frozen
class _Template:
    """Files of a backend, and what it is built on."""

    name: str
    folder: Traversable
    dependency: str

    @classmethod
    def of(cls, name: str) -> _Template:
        if name == DEFAULT_TEMPLATE:
            version = metadata.version("qcore-quant")
            return cls(name, _common() / name, _pinned("qcore-quant", version))
        points = {point.name: point for point in entry_points(TEMPLATES)}
        if name not in points:
            known = (DEFAULT_TEMPLATE, *sorted(points))
            close = near_misses(name, known)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ScaffoldError(
                f"No template {name!r}.{hint} There are: {', '.join(known)}. Others come with the "
                "distributions that a backend can be built on."
            )
        point = points[name]
        assert point.dist is not None
        needs = _pinned(point.dist.name, point.dist.version)
        return cls(name, importlib.resources.files(point.module), needs)

    def files(self) -> dict[str, str]:
        """Return the text of each file, by its name."""
        folders = (_common(), self.folder)
        found = {f.name: f for folder in folders for f in folder.iterdir()}
        return {
            name.removesuffix(".j2"): file.read_text("utf-8")
            for name, file in sorted(found.items())
            if name.endswith(".j2")
        }


def _common() -> Traversable:
    return importlib.resources.files("qcore.cli") / "templates"


def _pinned(distribution: str, version: str) -> str:
    """Return a requirement that takes every release of the same minor version."""
    major, minor = map(int, version.split(".")[:2])
    return f"{distribution}>={major}.{minor},<{major}.{minor + 1}"


@frozen
class _Names:
    """What a backend is called in the places that name it."""

    backend: str

    @property
    def distribution(self) -> str:
        return f"qcore-{self.backend.replace('_', '-')}"

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def cls(self) -> str:
        return "".join(map(str.capitalize, re.split("[-_]", self.backend))) + "Backend"


def write_backend(
    name: str, directory: Path | None = None, template: str = DEFAULT_TEMPLATE
) -> Path:
    """Write a distribution that installs and passes the conformance suite.

    Args:
        name: The backend's name.
        directory: Where to; ``None`` means ``qcore-NAME`` in the working directory.
        template: What it is built on: ``"torch"``, or one that an installed distribution brings.

    Returns:
        The folder.

    Raises:
        ScaffoldError: The name is none or is taken, there is no such template, or the folder has
            something in it or no folder to be in.
    """
    names, chosen = _checked(name), _Template.of(template)
    folder = directory or Path(names.distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ScaffoldError(
            f"{folder} exists and is not empty. Remove it, or pass another --directory."
        )
    if not folder.absolute().parent.is_dir():
        raise ScaffoldError(
            f"There is no folder {folder.parent} to write {folder.name} in. Make it first "
            f"(mkdir -p {folder.parent}), or pass another --directory."
        )
    beside = folder.absolute().parent
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=beside) as temporary:
        whole = Path(temporary) / "whole"
        for name, text in chosen.files().items():
            place = _PLACES.get(name, f"src/{{package}}/{name}")
            target = whole / place.format(package=names.package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_rendered(text, names, chosen), encoding="utf-8")
        if folder.exists():
            for made in whole.iterdir():
                made.rename(folder / made.name)
        else:
            whole.rename(folder)
    return folder


def _checked(name: str) -> _Names:
    if _NAME.fullmatch(name) is None:
        proposal = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f" Try {proposal!r}." if proposal else ""
        raise ScaffoldError(
            f"{name!r} is no name for a backend: lower-case letters and digits, beginning with a "
            f"letter, with single hyphens between words, such as 'my-npu'.{hint}"
        )
    taken = backends().get(name)
    if taken is not None:
        raise ScaffoldError(
            f"The name {name!r} is taken by {'; '.join(taken.origins)}. Choose another."
        )
    names = _Names(name)
    if names.distribution == "qcore-quant":
        raise ScaffoldError("'quant' would make the distribution qcore-quant, which is the core.")
    return names


def _rendered(text: str, names: _Names, template: _Template) -> str:
    import jinja2

    # autoescape is for HTML.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.from_string(text).render(
        backend=names.backend,
        distribution=names.distribution,
        package=names.package,
        cls=names.cls,
        template=template.name,
        dependency=template.dependency,
    )
