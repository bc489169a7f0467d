"""What must hold of every change to a library that a distribution declares."""

from __future__ import annotations

import importlib
import pkgutil
from types import CodeType
from typing import Any, ClassVar

import pytest

from qcore.compat import Change, Requirement, Wording, requirements
from qcore.compat.patching import holders
from qcore.errors import LibraryChangedError

__all__ = ["LibraryChanges"]


class LibraryChanges:
    """Checks of the modules in a package's ``compat``; subclass it and name the package.

    Attributes:
        package: The package, such as ``qcore_acme``.
    """

    package: ClassVar[str]

    @classmethod
    def declared(cls) -> list[Requirement]:
        """Return what the package requires of the installed versions."""
        compat = importlib.import_module(f"{cls.package}.compat")
        for module in pkgutil.iter_modules(compat.__path__, f"{compat.__name__}."):
            importlib.import_module(module.name)
        inside = f"{compat.__name__}."
        return [one for one in requirements() if one.file.startswith(inside) and one.needed]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Ask about each name by itself."""
        pairs = [(one, name) for one in self.declared() for name in one.names]
        ids = [f"{one.owner}.{name}" for one, name in pairs]
        if "name" in metafunc.fixturenames:
            metafunc.parametrize(("requirement", "name"), pairs, ids=ids)

    def test_something_is_declared(self) -> None:
        assert self.declared()

    def test_the_installed_library_fits(self, requirement: Requirement, name: str) -> None:
        assert requirement.supported, f"{requirement.library}{requirement.versions}"
        requirement.checked()

    def test_a_planted_rename_is_refused_with_the_file_to_look_at(
        self, requirement: Requirement, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if isinstance(requirement, Wording):
            for function in requirement.functions():
                monkeypatch.setattr(function, "__code__", _reworded(function.__code__, name))
        else:
            _rename(requirement.target(), name, monkeypatch)
        with pytest.raises(LibraryChangedError, match=requirement.file):
            _use(requirement)


def _use(requirement: Requirement) -> None:
    if isinstance(requirement, Change):
        with requirement.applied(*[None] * len(requirement.names)):
            pass
    else:
        requirement.checked()


def _rename(target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a name away, or add it where it is to be new."""
    owners = [one for one in holders(target, name) if name in vars(one)]
    for owner in owners:
        monkeypatch.delattr(owner, name)
    if not owners:
        monkeypatch.setattr(target, name, None, raising=False)


def _reworded(code: CodeType, name: str) -> CodeType:
    """Return code that uses another name in the place of one."""

    def other(word: Any) -> Any:
        if isinstance(word, CodeType):
            return _reworded(word, name)
        return f"renamed_{name}" if word == name and isinstance(word, str) else word

    parts: dict[str, Any] = {
        part: tuple(map(other, getattr(code, part)))
        for part in ("co_names", "co_varnames", "co_cellvars", "co_freevars", "co_consts")
    }
    return code.replace(**parts)
