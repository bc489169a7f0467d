"""Reports as text: a view for each kind, grouped and short."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any, TypeVar

from qcore.report.base import Report, as_text
from qcore.report.decisions import AnnotationReport, Decision
from qcore.report.lowering import LoweringReport, NodeRecord
from qcore.report.serialize import dump, members
from qcore.report.source import SourceReport
from qcore.report.verification import Verification

__all__ = ["as_text", "notes"]

_Key = TypeVar("_Key", bound=Hashable)
_Node = TypeVar("_Node")


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
    lines = [f"{count:4d} x {scheme}" for scheme, count in schemes.most_common()]

    def why(decision: Decision) -> tuple[str, str]:
        return _of_many(decision.reason, report), _of_many(decision.advice, report)

    for (reason, advice), found in _by(why, report.in_float).items():
        if len(found) == 1:
            reason, advice = found[0].reason, found[0].advice
        lines += _why(found, f" in float: {reason}", advice)
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
        for why, nodes in _by(lambda n: (n.reason, n.advice), report.undelegated).items():
            lines += _why(nodes, f": {why[0]}", why[1])
    if report.stray:
        lines.append(f"quantize/dequantize outside the delegates ({len(report.stray)}):")
        for operator, found in _by(lambda n: n.operator, report.stray).items():
            fed = _first([f"{n.name} feeds {', '.join(n.feeds) or 'nothing'}" for n in found])
            lines.append(f"{len(found):4d} x {operator} [{fed}]")
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
    told = [layer for layer in report.layers if layer.scheme is None or layer.reason]
    for (kind, scheme, reason), found in _by(lambda r: (r.kind, r.scheme, r.reason), told).items():
        names = _first([r.name for r in found])
        lines.append(f"{len(found):4d} x {kind} is {scheme or 'as it was'}: {reason} [{names}]")
    lines += [f"{r.name} shares the weight of {r.tied_with}" for r in report.layers if r.tied_with]
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


def _by(key: Callable[[_Node], _Key], nodes: Iterable[_Node]) -> dict[_Key, list[_Node]]:
    found: dict[_Key, list[_Node]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node)
    return found


def _why(nodes: Sequence[Decision | NodeRecord], reason: str, advice: str) -> list[str]:
    """Return what is said of nodes: how many, which operators, why, the first, what to try."""
    operators = dict(Counter(node.operator for node in nodes).most_common())
    what = _counts(operators) if len(operators) > 1 else nodes[0].operator
    names = _first([node.place for node in nodes])
    lines = [f"{len(nodes):4d} x {what}{reason} [{names}]"]
    return [*lines, f"       {advice}"] if advice else lines


def _of_many(text: str, report: AnnotationReport) -> str:
    """Return what is said of a node without the numbers of others, as it is said of many."""
    return re.sub(r"\b(\w+)_\d+\b", lambda m: m[m[0] in report.by_node], text)


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


def _first(names: list[str], most: int = 4) -> str:
    """Return some of the names, for reports that stay readable on large models."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
