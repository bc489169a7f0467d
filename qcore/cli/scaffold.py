"""Writing the distribution of a new backend."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Final

from attrs import frozen

from qcore.errors import ScaffoldError
from qcore.registry import backends

__all__ = ["write_backend"]

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")

# Template -> the file it becomes; braces are filled in.
_FILES: Final = {
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "init.py.j2": "src/{package}/__init__.py",
    "support.py.j2": "src/{package}/support.py",
    "backend.py.j2": "src/{package}/backend.py",
    "test_conformance.py.j2": "tests/test_conformance.py",
    "ci.yml.j2": ".github/workflows/tests.yml",
}


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


def write_backend(name: str, directory: Path | None = None) -> Path:
    """Write a distribution that installs and passes the conformance suite.

    Args:
        name: The backend's name.
        directory: Where to; ``None`` means ``qcore-NAME`` in the working directory.

    Returns:
        The folder.

    Raises:
        ScaffoldError: The name is none, is taken, or the folder has something in it.
    """
    names = _checked(name)
    folder = directory or Path(names.distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ScaffoldError(
            f"{folder} exists and is not empty. Remove it, or pass another --directory."
        )
    for template, pattern in _FILES.items():
        target = folder / pattern.format(package=names.package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_rendered(template, names), encoding="utf-8")
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


def _rendered(template: str, names: _Names) -> str:
    import jinja2

    source = (importlib.resources.files("qcore.cli") / "templates" / template).read_text("utf-8")
    # autoescape is for HTML.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(source).render(
        backend=names.backend,
        distribution=names.distribution,
        package=names.package,
        cls=names.cls,
    )
