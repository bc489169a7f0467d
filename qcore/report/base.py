"""What every report is: data of a kind, written as JSON and as text in one way for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import singledispatch
from typing import Any, ClassVar, Self

from attrs import frozen

from qcore.report.serialize import dump, load

__all__ = ["Report", "as_text"]


@frozen
class Report:
    """What is known of a model after a step of its way.

    A subclass is a frozen attrs class. Its fields and its properties that are marked ``@figure``
    are in the JSON and in the schema; :mod:`qcore.report.text` has the views.

    Attributes:
        backend: The backend that it is about.
    """

    #: What it is about. A backend's subclass that only adds to a kind of report inherits it.
    kind: ClassVar[str] = "report"

    #: Keys of the JSON, where they are not the name of the figure.
    keys: ClassVar[Mapping[str, str]] = {}

    backend: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strings, numbers, lists and dictionaries."""
        data: dict[str, Any] = dump(self)
        return data

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON.

        Args:
            indent: Spaces per level; ``None`` puts everything on one line.
        """
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that ``to_dict`` was asked of.

        Args:
            data: What ``to_dict`` returned, of this class or of one that adds to it.

        Raises:
            ValueError: It is a report of another kind.
        """
        if data.get("kind") != cls.kind:
            raise ValueError(
                f"{cls.__name__} is a report of kind {cls.kind!r}, the data of one of kind "
                f"{data.get('kind')!r}. Read it with the class of that kind."
            )
        report: Self = load(cls, data)
        return report

    def __str__(self) -> str:
        return as_text(self)


@singledispatch
def as_text(report: Report) -> str:
    """Return a report as text that stays short on large models."""
    raise TypeError(f"{report!r} is no report.")
