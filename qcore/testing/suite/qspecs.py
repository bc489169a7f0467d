"""Reading the annotations of a graph and what they became."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qcore.graph import tensor_attribute
from qcore.schemes import QuantizationScheme
from qcore.testing.subject import Annotated, Subject

__all__ = [
    "annotation_snapshot",
    "check_bits",
    "input_qspecs",
    "integer_weights",
    "is_parameter",
    "output_qspec",
    "says_something",
]


def _annotation(node: Node) -> Any:
    return node.meta.get(Q_ANNOTATION_KEY)


def input_qspecs(node: Node) -> dict[Node, Any]:
    """Return the qspecs of a node's input edges, without the empty ones."""
    annotation = _annotation(node)
    found = getattr(annotation, "input_qspec_map", None) or {}
    return {source: spec for source, spec in found.items() if spec is not None}


def output_qspec(node: Node) -> Any:
    """Return the qspec of a node's value, or ``None``."""
    return getattr(_annotation(node), "output_qspec", None)


def says_something(node: Node) -> bool:
    """Say whether a node has a qspec of its own."""
    return bool(input_qspecs(node)) or output_qspec(node) is not None


def annotation_snapshot(graph: GraphModule) -> dict[str, str]:
    """Return the annotations of a graph in a form that can be compared, by node."""
    return {
        node.name: repr(
            (
                sorted((source.name, repr(spec)) for source, spec in input_qspecs(node).items()),
                output_qspec(node),
            )
        )
        for node in graph.graph.nodes
        if says_something(node)
    }


def is_parameter(node: Node) -> bool:
    """Say whether a node reads a parameter or buffer, perhaps through views."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return bool(node.op == "get_attr")


def _bits(spec: QuantizationSpec) -> int:
    if spec.quant_min is not None and spec.quant_max is not None:
        return int(spec.quant_max - spec.quant_min).bit_length()
    return int(torch.iinfo(spec.dtype).bits)


def _plain(found: Annotated) -> Iterator[tuple[Node, str, bool, QuantizationSpec]]:
    for node in found.graph.graph.nodes:
        for source, spec in input_qspecs(node).items():
            if isinstance(spec, QuantizationSpec):
                yield node, f"the edge from {source.name}", is_parameter(source), spec
        if isinstance(output_qspec(node), QuantizationSpec):
            yield node, "its value", is_parameter(node), output_qspec(node)


def check_bits(subject: Subject, found: Annotated, scheme: QuantizationScheme) -> None:
    """Check that the qspecs are as wide as the scheme says, and dynamic if it is.

    Args:
        subject: The backend.
        found: A graph annotated with the scheme.
        scheme: The scheme.
    """
    if subject.requirements.changes_ranges:
        return
    for node, where, is_constant, spec in _plain(found):
        bits = _bits(spec)
        allowed = {scheme.weight_bits, scheme.activation_bits} if is_constant else set()
        allowed = allowed or {scheme.activation_bits}
        assert bits in allowed or (is_constant and bits == 32), (
            f"{subject.name}: {scheme} was selected, and {node.name} has {bits} bits on {where}: "
            "use the qspecs of plan.config_for(node) as they are."
        )
        assert is_constant or bool(spec.is_dynamic) == scheme.is_dynamic, (
            f"{subject.name}: {scheme} was selected, and {node.name} is "
            f"{'dynamic' if spec.is_dynamic else 'static'} on {where}: use the qspecs of "
            "plan.config_for(node) as they are."
        )


def integer_weights(model: GraphModule) -> Iterator[tuple[str, int, int]]:
    """Walk the parameters of a converted model that are stored in 8 bits or fewer.

    Args:
        model: What ``convert_pt2e`` returned.

    Yields:
        The operator that reads it, the largest level in use, and the largest level that there is.
    """
    for node in model.graph.nodes:
        source = node.args[0] if node.args else None
        if "dequantize_per" not in str(node.target) or not isinstance(source, Node):
            continue
        limit = node.args[5 if "per_channel" in str(node.target) else 4]
        if source.op == "get_attr" and limit <= 127:
            levels = tensor_attribute(model, source)
            yield ", ".join(user.name for user in node.users), int(levels.int().abs().max()), limit
