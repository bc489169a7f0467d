"""What conditionals and loops take and give: integers."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import GraphModule, Node

from qcore.annotation import write_annotation
from qcore.compat.torchao import QuantizationSpecBase, SharedQuantizationSpec
from qcore.control_flow import operands_of
from qcore.graph import BODY, float_operands, is_float_tensor
from qcore.plan import QuantizationPlan
from qcore.schemes import QuantizationConfig

__all__ = ["annotate_control_flow"]

_LOOP: Final = torch.ops.higher_order.while_loop
_CONTROL_FLOW: Final = (torch.ops.higher_order.cond, _LOOP)


def annotate_control_flow(model: GraphModule, plan: QuantizationPlan) -> None:
    """Annotate the operands and results of conditionals and loops, and of a body if it is one.

    Args:
        model: The captured model, or a body of its control flow.
        plan: What the user selected.
    """
    if BODY in model.meta:
        configs = (plan.config_for(node) for node in model.graph.nodes)
        config = next(filter(_is_static, configs), None)
        if config is not None:
            _annotate_boundary(model, config)
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in _CONTROL_FLOW:
            config = plan.config_for(node)
            if config is not None and _is_static(config):
                _annotate_call(node, config)


def _is_static(config: QuantizationConfig | None) -> bool:
    return config is not None and config.output_activation is not None


def _annotate_boundary(body: GraphModule, config: QuantizationConfig) -> None:
    for node in body.graph.nodes:
        if node.op == "placeholder" and node.users and is_float_tensor(node):
            write_annotation(node, output=config.input_activation)
        elif node.op == "output":
            outputs = dict.fromkeys(float_operands(node), config.output_activation)
            write_annotation(node, inputs=outputs)


def _annotate_call(call: Node, config: QuantizationConfig) -> None:
    """Annotate a conditional or a loop.

    ExecuTorch's lowering rescales every operand by the parameters of the first
    (``backends/arm/_passes/insert_rescales_pass.py``), so all of them have one range.
    """
    floats = [operand for operand in operands_of(call) if is_float_tensor(operand)]
    shared = SharedQuantizationSpec((floats[0], call)) if floats else None
    inputs: dict[Node, QuantizationSpecBase | None] = dict.fromkeys(floats, shared)
    inputs.update(dict.fromkeys(floats[:1], config.input_activation))
    write_annotation(call, inputs)
    for result in call.users:
        if result.target is operator.getitem and is_float_tensor(result):
            # What a turn of a loop gives, the next one takes.
            carried = call.target is _LOOP and shared is not None
            write_annotation(result, output=shared if carried else config.output_activation)
