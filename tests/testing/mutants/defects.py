"""What a planted defect is: a backend, the check that catches it, and what its message says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from qcore.testing import BackendConformance

__all__ = ["DEFECTS", "Calls", "Defect", "calls", "caught_by", "suite_of"]


def suite_of(name: str) -> BackendConformance:
    """Return the checks of a backend, to be called one by one."""
    made = type("Suite", (BackendConformance,), {"__test__": False, "backend": name})
    return made()


@attrs.frozen
class Calls:
    """A check with its arguments; of programs, those of some models alone."""

    name: str
    arguments: tuple[Any, ...] = ()
    models: tuple[str, ...] | None = None

    def __call__(self, backend: str) -> None:
        suite = suite_of(backend)
        subject = suite.make_subject()
        subject.models = self.models
        getattr(suite, f"test_{self.name}")(subject, *self.arguments)


def calls(name: str, *arguments: Any, models: Iterable[str] | None = None) -> Calls:
    return Calls(name, arguments, None if models is None else tuple(models))


@attrs.frozen
class Defect:
    backend: type
    check: Calls
    says: str

    @property
    def base(self) -> str:
        """The name of the backend that it is planted in."""
        return self.backend.name


DEFECTS: dict[str, Defect] = {}


def caught_by(check: Calls, says: str) -> Callable[[type], type]:
    """Say which check catches a defect, and what its message has to contain."""

    def add(backend: type) -> type:
        assert backend.__name__ not in DEFECTS
        DEFECTS[backend.__name__] = Defect(backend, check, says)
        return backend

    return add
