"""What Ethos-U lacks of what TOSA has, as data.

Read off ExecuTorch 1.4's ``backends/arm/operator_support/ethos_u55_support.py``, which Ethos-U65
goes by, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.annotation import MOVE_OUT, annotation_of
from qcore.graph import computes_floats, module_path, operator_name, overload_packet, tensor_value
from qcore.report import AnnotationReport, Decision, Diagnostic
from qcore_tosa.constants import depending_on

__all__ = ["U55_LACKS", "U55_LACKS_IN_16_BITS", "unsupported_nodes"]

aten = torch.ops.aten

#: What the NPU has no operator for, and the operators that need it.
U55_LACKS: Final[dict[str, tuple[Any, ...]]] = {
    "three-dimensional convolutions": (aten.conv3d,),
    "comparisons": (aten.eq, aten.ne, aten.ge, aten.gt, aten.le, aten.lt),
    "selecting by a condition": (aten.where, aten.masked_fill),
    "boolean or bitwise logic": (
        aten.any,
        aten.bitwise_and,
        aten.bitwise_or,
        aten.bitwise_xor,
        aten.bitwise_not,
        aten.logical_and,
        aten.logical_or,
        aten.logical_xor,
        aten.logical_not,
    ),
    "reversing": (aten.flip,),
    "gathering and scattering by index": (
        aten.gather,
        aten.grid_sampler,
        aten.index,
        aten.index_select,
        aten.index_put,
        aten.embedding,
        aten.scatter,
        aten.scatter_add,
        aten.select_scatter,
        aten.unfold_copy,
    ),
    "resizing": (aten.upsample_nearest2d, aten.upsample_bilinear2d),
}

#: What it has for 8 bits only.
U55_LACKS_IN_16_BITS: Final[dict[str, tuple[Any, ...]]] = {
    "products of two 16-bit tensors": (aten.matmul, aten.mm, aten.bmm),
    "transposed convolutions of 16-bit activations": (aten.conv_transpose2d,),
}


def _by_operator(lacks: dict[str, tuple[Any, ...]]) -> dict[Any, str]:
    return {packet: what for what, packets in lacks.items() for packet in packets}


_REASONS: Final = _by_operator(U55_LACKS)
_REASONS_IN_16_BITS: Final = _by_operator(U55_LACKS_IN_16_BITS)

_NO_WIDE: Final = "the NPU has no 64-bit integers, and this depends on an input"
_ADVICE_WIDE: Final = (
    "Compute it outside of the model and pass it as int32, keep it int32 throughout, or build the "
    "quantizer with allow_cpu=True."
)
_ADVICE: Final = "Compute it outside of the model, or choose an Ethos-U85."
_ADVICE_IN_16_BITS: Final = "Quantize it with 8a8w, or choose an Ethos-U85."


def unsupported_nodes(
    model: GraphModule, report: AnnotationReport, target: str
) -> Sequence[Diagnostic]:
    """Name everything that the NPU could not execute.

    Args:
        model: The annotated model.
        report: The decisions for it.
        target: The accelerator, such as ``"ethos-u55-128"``.

    Returns:
        An error for each such node.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    found = [_float_error(d) for d in report.in_float if _handles_floats(nodes[d.node])]
    if not target.startswith("ethos-u85"):
        known = {diagnostic.node for diagnostic in found}
        found += [d for d in _lacking(model, target) if d.node not in known]
    return found + list(map(_wide_input, filter(_is_wide_input, model.graph.nodes))) + _wide(model)


def _is_wide_input(node: Node) -> bool:
    is_read = any(user.op != "output" for user in node.users)
    return node.op == "placeholder" and is_read and _is_int64(node)


def _wide_input(node: Node) -> Diagnostic:
    return Diagnostic(
        node.name,
        "input",
        "",
        "the NPU has no 64-bit integers, so a cast of this input would stay on the CPU",
        "Give the model int32, as in tokens.to(torch.int32), or build the quantizer with "
        "allow_cpu=True.",
    )


def _wide(model: GraphModule) -> list[Diagnostic]:
    """Name what computes 64-bit integers of the inputs; those of constants are computed before."""
    varying = depending_on(model.graph.find_nodes(op="placeholder"))
    found = []
    for node in model.graph.nodes:
        if node.op != "call_function" or node not in varying or not _is_int64(node):
            continue
        # Of a chain the first is named. Positions of the largest of floats become int32.
        wide = any(source in varying and _is_int64(source) for source in node.all_input_nodes)
        positions = overload_packet(node) is aten.argmax and _handles_floats(node)
        if not wide and not positions:
            what = operator_name(node), module_path(node)
            found.append(Diagnostic(node.name, *what, _NO_WIDE, _ADVICE_WIDE))
    return found


def _is_int64(node: Node) -> bool:
    value = tensor_value(node)
    return value is not None and value.dtype is torch.int64


def _handles_floats(node: Node) -> bool:
    return any(map(computes_floats, (*node.all_input_nodes, node)))


def _float_error(decision: Decision) -> Diagnostic:
    return Diagnostic(
        decision.node,
        decision.operator,
        decision.module,
        f"it would stay in float: {decision.reason}",
        decision.advice or MOVE_OUT,
    )


def _lacking(model: GraphModule, target: str) -> Iterator[Diagnostic]:
    for node in model.graph.nodes:
        packet = overload_packet(node)
        what, advice = _REASONS.get(packet), _ADVICE
        if _reads_16_bits(node) and packet in _REASONS_IN_16_BITS:
            what, advice = _REASONS_IN_16_BITS[packet], _ADVICE_IN_16_BITS
        if what is not None:
            yield Diagnostic(
                node.name,
                operator_name(node),
                module_path(node),
                f"{target} has no {what}",
                advice,
            )


def _reads_16_bits(node: Node) -> bool:
    annotation = annotation_of(node)
    inputs = annotation.input_qspec_map.values() if annotation is not None else ()
    return any(getattr(spec, "dtype", None) is torch.int16 for spec in inputs)
