"""The grammar of schemes' names: one for ``quantize`` and ``quantize_``."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from attrs import frozen

from qcore.formats import LABEL

__all__ = ["Granularity", "SchemeName", "names_elsewhere"]

Granularity = Literal["per_tensor", "per_channel", "per_group", "per_operator"]

_NAME: Final = re.compile(
    rf"(?:(?P<activation>{LABEL}|f)(?P<dynamic>d?)a)?(?P<weight>{LABEL})w"
    r"(?:[ -](?P<kind>static|dynamic|weight-only))?"
    r"(?:[ -]per[-_](?:(?P<granularity>tensor|channel|axis|operator)"
    r"|(?P<group>group)(?:[ -](?P<size>[1-9]\d*))?))?"
)
#: What other tools call the schemes, in small letters and without what separates parts.
_ELSEWHERE: Final = {
    **dict.fromkeys(("int8", "8bit", "a8w8", "w8a8", "8x8", "static", "int8static"), ("8a8w",)),
    **dict.fromkeys(("dynamic", "int8dynamic", "dynamicint8"), ("8da8w",)),
    **dict.fromkeys(("int16", "16x8", "a16w8", "w8a16"), ("16a8w",)),
    **dict.fromkeys(("int4", "4bit", "w4a8", "a8w4", "w4"), ("8da4w", "4w")),
    **dict.fromkeys(("int8weightonly", "weightonly", "w8"), ("8w",)),
}


def names_elsewhere(text: str) -> tuple[str, ...]:
    """Return the names here of what other tools call by a name; empty where none is known."""
    return _ELSEWHERE.get(re.sub("[-_ ]", "", text.lower()), ())


@frozen
class SchemeName:
    """What a scheme's name says.

    ``8a8w``, ``8da8w per-tensor``, ``4w per-axis``, ``8da4w per-group 32``: the label of the
    activations' format, with ``d`` where ranges are dynamic, and that of the weights' format.

    Attributes:
        weight: The label of the format of weights.
        activation: That of activations; ``None`` where they stay in float.
        is_dynamic: Whether activation ranges are measured at run time.
        granularity: How finely weights are scaled; ``None`` for what the backend prefers.
        group_size: Per group: how many weights share a scale; ``None`` for what it prefers.
    """

    weight: str
    activation: str | None = None
    is_dynamic: bool = False
    granularity: Granularity | None = None
    group_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> SchemeName | None:
        """Read a name; ``None`` for what is none."""
        found = _NAME.fullmatch(text.strip().lower())
        if found is None:
            return None
        activation = None if found["activation"] == "f" else found["activation"]
        kind = found["kind"] or ("dynamic" if found["dynamic"] else "")
        if kind and (kind == "weight-only") != (activation is None):
            return None
        if found["dynamic"] and kind != "dynamic":
            return None
        granularity: Any = f"per_{found['granularity'] or found['group']}"
        return cls(
            found["weight"],
            activation,
            kind == "dynamic",
            {"per_axis": "per_channel", "per_None": None}.get(granularity, granularity),
            int(found["size"]) if found["size"] else None,
        )

    @property
    def short(self) -> str:
        """The name without granularity, as :attr:`QuantizationScheme.name` has it."""
        activation = self.activation and f"{self.activation}{'d' if self.is_dynamic else ''}a"
        return f"{activation or ''}{self.weight}w"

    def __str__(self) -> str:
        words = [self.short, *([self.granularity.replace("_", "-")] if self.granularity else [])]
        return " ".join([*words, *([str(self.group_size)] if self.group_size else [])])
