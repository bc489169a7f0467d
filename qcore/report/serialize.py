"""The one way from records and reports to plain data and back, and the schema of that data."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

__all__ = ["UNSERIALIZED", "dump", "figure", "load", "members", "schema"]

if TYPE_CHECKING:
    from builtins import property as figure
else:

    class figure(property):  # stands where ``property`` would
        """A property whose value is in the JSON and in its schema, beside the fields."""


#: Metadata of a field that is not in the JSON.
UNSERIALIZED: Final = {"qcore_serialized": False}

# An entry of the section "Attributes" of a docstring.
_ENTRY: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)

_TYPES: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # JSON has no infinity and no NaN
    type(None): {"type": "null"},
}


@attrs.frozen
class Member:
    """A key of the JSON: the attribute behind it, its type and what it means."""

    key: str
    name: str
    type: Any
    meaning: str
    is_field: bool = False


def dump(value: Any) -> Any:
    """Return a record, a report or what their fields hold as plain data.

    A number that is not finite is ``None``.
    """
    kind: Any = type(value)
    if attrs.has(kind):
        return {m.key: dump(getattr(value, m.name)) for m in members(kind)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(kind: Any, data: Any) -> Any:
    """Return what ``dump`` was given, by its type; keys that this does not have are passed over.

    Fields that the data lack, as those of an earlier release, have their defaults. Figures are
    computed anew; numbers that were not finite are NaN.
    """
    if attrs.has(kind):
        given = [m for m in members(kind) if m.is_field and m.key in data]
        return kind(**{m.name: load(m.type, data[m.key]) for m in given})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if data is None else load(arguments[0], data)
    if origin is tuple:
        kinds = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(load(item, value) for item, value in zip(kinds, data, strict=True))
    if arguments:
        return {key: load(arguments[1], value) for key, value in data.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    return math.nan if kind is float and data is None else data


def schema(*kinds: type) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what ``dump`` makes of some classes.

    Args:
        *kinds: The classes of records or reports.

    Returns:
        The schema; data fits that fits one class. It may have more keys than the class, as that
        of a subclass has.

    Raises:
        TypeError: A field or figure has a type without a form in JSON.
    """
    definitions: dict[str, Any] = {}
    found = [_schema(kind, definitions) for kind in kinds]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": found,
        "$defs": definitions,
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if attrs.has(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"const": arguments[0]}
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if arguments and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    if kind in _TYPES:
        return _TYPES[kind]
    raise TypeError(
        f"{kind!r} has no form in JSON. Use str, bool, int, float, an Enum, an attrs class, "
        "tuple[...], Mapping[str, ...], any of them | None, or give the field "
        "metadata=qcore.report.UNSERIALIZED."
    )


def _object_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    found = members(kind)
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "type": "object",
        "properties": {
            m.key: {"description": m.meaning, **_schema(m.type, definitions)} for m in found
        },
        "required": [m.key for m in found],
    }


@cache
def members(kind: type) -> tuple[Member, ...]:
    """Return what the JSON of a class holds: its kind, fields and figures."""
    keys: Mapping[str, str] = getattr(kind, "keys", {})
    tag = getattr(kind, "kind", None)
    meanings: dict[str, str] = {}
    figures: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        meanings.update(_ENTRY.findall(inspect.getdoc(base) or ""))
        figures |= {name: value for name, value in vars(base).items() if isinstance(value, figure)}
    types = get_type_hints(kind)
    found = [Member("kind", "kind", Literal[tag], "What it is about.")] * isinstance(tag, str)
    for field in attrs.fields(kind):
        if field.metadata.get("qcore_serialized", True):
            meaning = " ".join(meanings.get(field.name, "").split())
            found.append(Member(field.name, field.name, types[field.name], meaning, True))
    for name, value in figures.items():
        meaning = " ".join((inspect.getdoc(value) or "").split())
        returned = get_type_hints(value.fget)["return"]
        found.append(Member(keys.get(name, name), name, returned, meaning))
    # Lists come last: they are long.
    return tuple(sorted(found, key=lambda member: get_origin(member.type) is tuple))
