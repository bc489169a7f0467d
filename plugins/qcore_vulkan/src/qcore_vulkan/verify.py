"""Checking a Vulkan program without a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, Protocol

import torch
from torch.fx import Graph, Node

from qcore.lowering import held_tensors
from qcore.lowering.rounding import sqnr_db
from qcore.quiet import quiet
from qcore_executorch.check import Reference
from qcore_executorch.walk import initial_state, walk
from qcore_vulkan.graph import DelegateGraph, decode, graph_of
from qcore_vulkan.reference import unpack_even_high, unpack_even_low
from qcore_vulkan.report import VulkanVerification, WeightCheck

__all__ = ["Verifiable", "verify"]

# Quantized operator -> where its weight and scales are, how it packs them, and its group size.
_WEIGHTS: Final = {
    "et_vk.linear_q4gsw.default": (1, 2, 3),
    "et_vk.linear_dq8ca_q4gsw.default": (3, 5, 6),
    "et_vk.linear_qcs4w.default": (1, 2, None),
    "aten._weight_int8pack_mm.default": (1, 2, None),
}


class Verifiable(Protocol):
    """A program that still holds what it was made of."""

    @property
    def buffer(self) -> bytes:
        """The bytes of the ``.pte``."""

    @property
    def quantized(self) -> Any:
        """The quantized model that was lowered."""

    @property
    def partitioned(self) -> Any:
        """The same after partitioning."""


def verify(program: Verifiable, inputs: list[Any]) -> VulkanVerification:
    """Compare a program with the quantized model that it was lowered from.

    Args:
        program: What ``lower`` returned.
        inputs: The model's arguments, flat.

    Returns:
        The comparison.
    """
    with quiet(), torch.no_grad():
        graphs = decode(program.buffer)
        reference = Reference.of(program.quantized, inputs)
        partitioned = program.partitioned
        actual = walk(
            partitioned,
            initial_state(partitioned),
            inputs,
            lambda lowered, operands: graph_of(lowered, graphs).run(operands),
        )
        stored = _model_weights(program.quantized)
        weights = tuple(check for graph in graphs for check in _checks(graph, stored))
    pairs = zip(reference.expected, actual, strict=True)
    differences = [(_numbers(a), _numbers(b)) for a, b in pairs if a is not None]
    ratio = min(sqnr_db(a, b) for a, b in differences)
    return VulkanVerification(
        backend="vulkan",
        sqnr_db=ratio,
        max_abs_error=max(float((a - b).abs().max()) for a, b in differences),
        weights=weights,
        expected_weights=len(stored),
        operators=dict(Counter(name for graph in graphs for name in graph.operators)),
        difference=_difference(program.quantized, reference, actual, ratio),
    )


def _difference(model: Any, reference: Reference, outputs: Any, ratio: float) -> str:
    """Say how a program's outputs differ beyond rounding; only dynamic activations are rounded."""
    if ratio >= VulkanVerification.least_sqnr_db:
        return ""
    if not any("choose_qparams" in str(node.target) for node in model.graph.nodes):
        return f"{ratio:.0f} dB, and no activation is rounded"
    with quiet():
        return reference.difference(outputs)


def _numbers(output: Any) -> torch.Tensor:
    return torch.as_tensor(output).double()


def _model_weights(program: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the quantized weights that a model's outputs depend on, each with its scales."""
    held = held_tensors(program)
    found = []
    used = _used_nodes(program.graph)
    for node in program.graph.nodes:
        name = str(node.target)
        if node not in used or "dequantize" not in name or "per_tensor" in name:
            continue
        if not any(user.target is torch.ops.aten.linear.default for user in node.users):
            continue  # Of no layer: read as values.
        source, scales = node.args[0], node.args[2 if "affine" in name else 1]
        if all(isinstance(n, Node) and n.name in held for n in (source, scales)):
            found.append((held[source.name], held[scales.name]))
    return found


def _used_nodes(graph: Graph) -> set[Node]:
    """Return the operators that the outputs depend on; lowering drops the others."""
    found: set[Node] = set()
    pending = list(graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        if node.op == "call_function" and node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _checks(
    graph: DelegateGraph, stored: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[WeightCheck]:
    found = []
    prepacked = {
        call.args[-1]: call.args[0]
        for call in graph.graph.chain
        if call.name == "et_vk.prepack.default"
    }
    for call in graph.graph.chain:
        if call.name not in _WEIGHTS:
            continue
        weight_at, scales_at, group_at = _WEIGHTS[call.name]
        packed, scales = (
            graph.constants[prepacked.get(call.args[at], call.args[at])]
            for at in (weight_at, scales_at)
        )
        if group_at is not None:
            group = graph.graph.values[call.args[group_at]].value.int_val
            weight, scales = unpack_even_low(packed, group * scales.shape[0]), scales.T
        elif packed.dtype == torch.uint8:
            weight = unpack_even_high(packed)
        else:
            weight = packed
        found.append(
            WeightCheck(
                call.name,
                (weight.shape[0], weight.shape[1]),
                8 if packed.dtype == torch.int8 else 4,
                any(_same(weight, scales, *other) for other in stored),
            )
        )
    return found


def _same(
    weight: torch.Tensor, scales: torch.Tensor, other: torch.Tensor, other_scales: torch.Tensor
) -> bool:
    rows = other_scales.shape[0]
    if weight.shape != other.shape or not torch.equal(weight, other):
        return False
    scales = scales[:rows].reshape(other_scales.shape)
    return bool(torch.equal(scales.float(), other_scales.float()))
