"""Scalar operands as tensors, which can be quantized."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qcore.annotation.in_place import functional_twin
from qcore.graph import insert_constant, is_float_tensor
from qcore.plan import QuantizationPlan

__all__ = ["scalars_to_attributes"]


def scalars_to_attributes(
    model: GraphModule, plan: QuantizationPlan, targets: Collection[Any]
) -> GraphModule:
    """Turn the scalar operands of float operators into tensor attributes, so that they quantize.

    Integer arithmetic keeps its scalars: as floats they would turn indices into floats. Operators
    that stay in float or have dynamic activations keep theirs, too.

    Args:
        model: The captured model; changed in place.
        plan: Tells which operators will be quantized.
        targets: The operators to rewrite, with two operands each.

    Returns:
        The model.
    """
    before = sum(name.startswith("_scalar_") for name, _ in model.named_buffers(recurse=False))
    count = before
    for node in list(model.graph.nodes):
        operation = functional_twin(node.target) or node.target
        if node.op != "call_function" or operation not in targets or not is_float_tensor(node):
            continue
        config = plan.config_for(node)
        if config is None or config.output_activation is None:
            continue
        operands = list(node.args[:2])
        for position, operand in enumerate(operands):
            if isinstance(operand, (int, float)):
                operands[position] = _attribute(model, node, float(operand), f"_scalar_{count}")
                count += 1
        node.args = (*operands, *node.args[2:])
    if count > before:
        model.recompile()
    return model


def _attribute(model: GraphModule, node: Node, value: float, name: str) -> Node:
    like: torch.Tensor = node.meta["val"]
    model.register_buffer(name, torch.tensor(value, dtype=like.dtype, device=like.device))
    attribute = insert_constant(model, node, name, node)
    if "nn_module_stack" in node.meta:
        attribute.meta["nn_module_stack"] = node.meta["nn_module_stack"]
    return attribute
