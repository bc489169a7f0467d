"""Fills the parts of docs/ that list schemes and operators, from what the plugins declare.

``python tools/support_sections.py`` writes them; with ``--check`` it says whether they are current.
They stand between ``<!-- supported schemes -->`` or ``<!-- supported operators -->`` and
``<!-- end -->``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import qcore
from qcore.annotation import OperatorPattern, SupportTable
from qcore.quantizer import Quantizer
from qcore.schemes import QuantizationScheme
from qcore.testing.support import markdown_table, with_parts, write_pages

DOCS: Final = Path(__file__).parent.parent / "docs"


def main(arguments: Sequence[str]) -> int:
    """Write the parts, or compare them.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where a page is not current.
    """
    from qcore_ethosu.support import U55_LACKS, U55_LACKS_IN_16_BITS
    from qcore_tosa.forms import TOSA_FORMS
    from qcore_tosa.support import TABLE

    vgf = {"vgf": qcore.get_quantizer("vgf")}
    targets = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
    npus = {name: qcore.get_quantizer("ethosu", target=name) for name in targets}
    lacking = {
        packet: f"not on U55 and U65: {what}"
        for what, packets in {**U55_LACKS, **U55_LACKS_IN_16_BITS}.items()
        for packet in packets
    }
    pages = {}
    for page, quantizers, limits in (("vgf", vgf, {}), ("ethosu", npus, lacking)):
        parts = {
            "supported schemes": f"\n{schemes(quantizers)}\n",
            "supported operators": f"\n{operators(TABLE, TOSA_FORMS, quantizers, limits)}\n",
        }
        path = DOCS / f"{page}.md"
        pages[path] = with_parts(path, parts)
    return write_pages(pages, arguments, "make support")


def schemes(quantizers: Mapping[str, Quantizer]) -> str:
    """List the schemes of each target.

    Args:
        quantizers: By the name of the target.

    Returns:
        A table in Markdown.
    """
    supported = {name: _names(q.supported_schemes) for name, q in quantizers.items()}
    targets = supported if len(supported) > 1 else ()
    rows = (
        [scheme, *("yes" if scheme in supported[name] else "—" for name in targets)]
        for scheme in dict.fromkeys(name for names in supported.values() for name in names)
    )
    return markdown_table(["scheme", *targets], rows)


def _names(supported: Sequence[QuantizationScheme]) -> list[str]:
    names = [str(scheme).removesuffix(" QAT") for scheme in supported]
    trained = {name for name, scheme in zip(names, supported, strict=True) if scheme.is_qat}
    return [f"{name}, PTQ and QAT" if name in trained else name for name in dict.fromkeys(names)]


def operators(
    table: SupportTable,
    forms: Iterable[Any],
    quantizers: Mapping[str, Quantizer],
    limits: Mapping[Any, str],
) -> str:
    """List the operators of a support table, those alike in one row.

    Args:
        table: The table.
        forms: Operators that are written as others of the table.
        quantizers: Of the targets that share it.
        limits: What to say of operators that not every target has, by operator.

    Returns:
        A table in Markdown.
    """
    kinds = {scheme.is_dynamic for q in quantizers.values() for scheme in q.supported_schemes}
    alike: dict[tuple[str, str], list[str]] = {}
    for pattern in table:
        flags = ((False, pattern.static, "static"), (True, pattern.dynamic, "dynamic"))
        activations = [name for kind, has, name in flags if has and kind in kinds]
        key = ", ".join(activations), "; ".join(_remarks(pattern, limits))
        alike.setdefault(key, []).append(pattern.name)
    known = {name for names in alike.values() for name in names}
    packets = (target.overloadpacket.__name__ for target in forms)
    others = [name for name in packets if name not in known]
    alike["static", "written as other operators of this table"] = others
    rows = (
        [", ".join(dict.fromkeys(names)), activations_of, remarks]
        for (activations_of, remarks), names in alike.items()
    )
    return markdown_table(["operators", "activations", ""], rows)


def _remarks(pattern: OperatorPattern, limits: Mapping[Any, str]) -> Iterator[str]:
    if pattern.fuses:
        yield "relu, relu6 and clamps from 0 on run as part of it"
    if pattern.shares_range:
        yield "one range with what it reads"
    yield from dict.fromkeys(
        limits[target.overloadpacket]
        for target in pattern.targets
        if getattr(target, "overloadpacket", None) in limits
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
