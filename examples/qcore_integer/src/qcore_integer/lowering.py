"""The compiler: a step for each operator, in integers where all that it reads and gives is int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, held_tensors, program_specs, recorded_module_path
from qcore.report import LoweringReport, NodeRecord, StrayNode
from qcore_integer.artifact import QINT, NumpyRunner, write_program
from qcore_integer.interpreter import KERNELS

__all__ = ["lower_to_integers"]

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE_CHANNELS = decomposed.dequantize_per_channel.default
DEQUANTIZE = (decomposed.dequantize_per_tensor.default, DEQUANTIZE_CHANNELS)
LAYERS = (aten.linear.default, aten.conv2d.default)
PRODUCTS = (*LAYERS, aten.mul.Tensor)
CLAMPS = {  # Operator -> the limits that it has without arguments.
    aten.relu.default: (0, math.inf),
    aten.relu6.default: (0, 6),
    aten.hardtanh.default: (-1, 1),
}
IN_FLOAT = (aten.softmax.int, aten.matmul.default)  # between integers, too


def lower_to_integers(program: ExportedProgram, backend: str) -> LoweredProgram:
    """Compile a converted model; what numpy computes in float is reported as undelegated."""
    nodes, tensors = list(program.graph.nodes), _tensors(program)
    whole = {node: parts for node in nodes if (parts := _quantized_on_all_sides(node))}
    constants: list[Any] = []
    read: set[str] = set()

    def encoded(value: Any) -> Any:
        if isinstance(value, Node):
            while value.target is aten.dropout.default:  # What was captured does not train.
                value = value.args[0]
            if value.name not in tensors:
                read.add(value.name)
                return {"value": value.name}
            value = tensors[value.name]
        if isinstance(value, np.ndarray):
            constants.append(value)
            return {"constant": str(len(constants) - 1)}
        if isinstance(value, dict):
            return {key: encoded(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [encoded(item) for item in value]
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

    outputs, steps = encoded(nodes[-1].args[0]), {}
    for node in reversed(nodes):  # Backwards, since only what is read is computed.
        if node.op == "placeholder" or node.name not in read:
            continue
        if node not in whole and (str(node.target) not in KERNELS or node.kwargs):
            raise LoweringError(
                f"{backend} has no kernel for {node.target} ({node.name} in "
                f"{recorded_module_path(node) or 'the model'}), not even in float. Replace the "
                "operator, or add a kernel to qcore_integer.interpreter."
            )
        root, (args, integer) = node, (list(node.args), None)
        if node in whole:
            root = whole[node][0]
            args, integer = _in_integers(root, node, tensors)
        # A clamp by itself is what rounding ends with.
        op = aten.alias.default if integer and root.target in CLAMPS else root.target
        step = {"op": str(op), "args": args, "integer": integer, "out": node.name}
        steps[node] = encoded(step)
    description = {
        "inputs": list(program.graph_signature.user_inputs),
        "steps": list(reversed(steps.values())),
        "outputs": outputs,
    }
    buffer = write_program(description, constants)
    takes, returns = program_specs(program)
    executed = [(node, whole.get(node, ())) for node in nodes if node in steps]
    return LoweredProgram(
        buffer=buffer,
        backend=backend,
        report=_report(backend, executed, len(buffer)),
        runner=NumpyRunner(),
        inputs=takes,
        outputs=returns,
        structure=program.call_spec.out_spec,
        suffix=QINT.suffix,
    )


def _tensors(program: ExportedProgram) -> dict[str, Any]:
    """Return the weights and constants of a program, by the node that stands for them."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise LoweringError("integer keeps no state: let the model return what it writes.")
    return {name: value.detach().numpy() for name, value in held_tensors(program).items()}


def _quantized_on_all_sides(node: Node) -> tuple[Node, ...]:
    """Return the operator whose int8 result a node quantizes, with the clamp that is part of it."""
    if node.target is not QUANTIZE or node.args[5] is not torch.int8:
        return ()
    root: Any = node.args[0]
    parts = [root]
    if root.target in CLAMPS and root.args[0].target not in DEQUANTIZE:
        root = root.args[0]
        parts.insert(0, root)
    tensors = root.all_input_nodes[: 2 if root.target in LAYERS else None]  # not the bias
    known = str(root.target) in KERNELS and root.target not in IN_FLOAT and not root.kwargs
    quantized = all(n.target in DEQUANTIZE for n in tensors)
    alone = all(len(part.users) == 1 for part in parts)
    return tuple(parts) if known and tensors and quantized and alone else ()


def _in_integers(root: Node, quantize: Node, tensors: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return an operator's arguments without their dequantizing, and how integers are scaled."""
    clamp, scale, zero, low, high = quantize.args[:5]
    if clamp.target in CLAMPS:
        limits = (*clamp.args[1:3], *CLAMPS[clamp.target][len(clamp.args) - 1 :])
        low, high = np.clip([np.rint(at / scale) + zero for at in limits], low, high).tolist()
    args, scales, zeros = list(root.args), [], []
    for position, arg in enumerate(args):
        if isinstance(arg, Node) and arg.target in DEQUANTIZE:
            args[position], per, offset = arg.args[:3]
            channels = arg.target is DEQUANTIZE_CHANNELS
            scales.append(tensors[per.name].astype(float) if channels else np.array(per))
            zeros.append(0 if channels else offset)  # weights are symmetric
    product = root.target in PRODUCTS
    factors = [scales[0] * scales[1]] if product else scales
    if root.target is aten.conv2d.default and factors[0].ndim:
        factors = [factors[0][:, None, None]]
    if root.target in CLAMPS:
        args = args[:1]
    # Factors become integers of up to 30 bits, shifted to the left.
    largest = max(float(np.max(factor)) for factor in factors) / scale
    shift = min(max(30 - math.frexp(largest)[1], 1), 62)
    return args, {
        "zeros": zeros,
        "factors": [np.asarray(np.rint(f / scale * 2.0**shift), np.int64) for f in factors],
        "after": product,
        "shift": shift,
        "zero": zero,
        "low": low,
        "high": high,
    }


def _report(backend: str, executed: Sequence[tuple[Node, Any]], size: int) -> LoweringReport:
    def record(node: Node, reason: str = "") -> NodeRecord:
        return NodeRecord(node.name, str(node.target), recorded_module_path(node), reason)

    in_float = [node for node, parts in executed if not parts]
    stray = [node for node in in_float if node.target in (QUANTIZE, *DEQUANTIZE)]
    why = "not all that it reads and gives is quantized"
    delegated = tuple(record(part) for _, parts in executed for part in parts)
    return LoweringReport(
        backend=backend,
        delegates=int(bool(delegated)),
        delegated=delegated,
        undelegated=tuple(record(node, why) for node in in_float if node not in stray),
        stray=tuple(
            StrayNode(node.name, str(node.target), tuple(user.name for user in node.users))
            for node in stray
        ),
        program_bytes=size,
    )
