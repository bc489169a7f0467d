"""Reports as text: a view for each kind, grouped and short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import singledispatch
from typing import Any, TypeVar

from qcore.report.base import Report, as_text
from qcore.report.decisions import AnnotationReport
from qcore.report.lowering import LoweringReport
from qcore.report.serialize import dump, members
from qcore.report.source import SourceReport
from qcore.report.verification import Verification

__all__ = ["as_text", "grouped", "notes"]

_Key = TypeVar("_Key", bound=Hashable)


@singledispatch
def notes(report: Report) -> tuple[str, ...]:
    """Return what a subclass of a report has to say beside the text of its kind, a line each.

    ``@notes.register`` a function for the subclass to word it; without one, its own fields and
    figures are listed.
    """
    own: Any = type(report)
    viewed: Any = next(kind for kind in own.__mro__ if kind in as_text.registry)
    known = {member.key for member in members(viewed)}
    added = [member for member in members(own) if member.key not in known]
    return tuple(f"{m.key}: {_short(dump(getattr(report, m.name)))}" for m in added)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return _counts(value)
    return _number(len(value), "item") if isinstance(value, list) else str(value)


@as_text.register
def _(report: Report) -> str:
    return _lines(f"{report.backend}: {report.kind}", report)


@as_text.register
def _(report: AnnotationReport) -> str:
    schemes = Counter(d.scheme for d in report.quantized)
    keyed = (((d.operator, d.reason, d.advice), d.place) for d in report.in_float)
    lines = [f"{count:4d} x {scheme}" for scheme, count in schemes.most_common()]
    for (operator, reason, advice), count, names in grouped(keyed):
        lines.append(f"{count:4d} x {operator} in float: {reason} [{names}]")
        lines += [f"       {advice}"] if advice else []
    lines += [f"warning: {warning}" for warning in report.warnings]
    return _lines(
        f"{report.backend}: {len(report.quantized)} of {len(report.decisions)} compute nodes "
        f"quantized, {len(report.in_float)} in float",
        report,
        lines,
    )


@as_text.register
def _(report: LoweringReport) -> str:
    if not report.complete:
        return (
            f"{report.backend}: {_size(report.program_bytes)}, read from a file, "
            "which does not record what was delegated"
        )
    timing = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
    lines = [f"delegated: {_counts(report.delegated_ops)}"] if report.delegated else []
    if report.undelegated:
        lines.append(f"{report.elsewhere} ({len(report.undelegated)}), they still run:")
        keyed = (((n.operator, n.reason), n.place) for n in report.undelegated)
        for (operator, reason), count, names in grouped(keyed):
            lines.append(f"{count:4d} x {operator}: {reason} [{names}]")
    if report.stray:
        lines.append(f"quantize/dequantize outside the delegates ({len(report.stray)}):")
        lines += [f"  {node}" for node in report.stray]
    return _lines(
        f"{report.backend}: {_number(report.delegates, 'delegate')} with "
        f"{_number(len(report.delegated), 'compute node')}, {_size(report.program_bytes)}"
        + (f" ({timing})" if timing else ""),
        report,
        lines,
    )


@as_text.register
def _(report: SourceReport) -> str:
    lines = [f"{count:4d} x {scheme}" for scheme, count in report.by_scheme.items()]
    for layer in report.layers:
        if layer.scheme is None:
            lines.append(f"{layer.name} ({layer.kind}) stays as it is: {layer.reason}")
        elif layer.reason:
            lines.append(f"{layer.name} ({layer.kind}) is {layer.scheme}: {layer.reason}")
        if layer.tied_with:
            lines.append(f"{layer.name} shares the weight of {layer.tied_with}")
    return _lines(
        f"{report.backend}: {len(report.quantized)} of {len(report.layers)} layers quantized, "
        f"{report.bytes_before / 1e6:.2f} MB -> {report.bytes_after / 1e6:.2f} MB, "
        f"{report.bits_per_weight:.2f} bits per quantized weight",
        report,
        [*lines, *report.untied],
    )


@as_text.register
def _(report: Verification) -> str:
    found = (
        f"outputs against the quantized model: {report.sqnr_db:.1f} dB, "
        f"largest difference {report.max_abs_error:.2g}"
    )
    return _lines(
        f"{report.backend}: {'verified' if report.ok else 'NOT verified'}", report, [found]
    )


def _lines(heading: str, report: Report, lines: Iterable[str] = ()) -> str:
    return "\n  ".join([heading, *lines, *notes(report)])


def _counts(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in numbers.items())


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.2f} MB"


def grouped(
    keyed: Iterable[tuple[_Key, str]], most_names: int = 4
) -> Iterator[tuple[_Key, int, str]]:
    """Group names by what is said of them, for reports that stay readable on large models.

    Yields what is said, of how many names, and the first of these.
    """
    groups: dict[_Key, list[str]] = {}
    for key, name in keyed:
        groups.setdefault(key, []).append(name)
    for key, names in groups.items():
        more = ", ..." if len(names) > most_names else ""
        yield key, len(names), ", ".join(names[:most_names]) + more
