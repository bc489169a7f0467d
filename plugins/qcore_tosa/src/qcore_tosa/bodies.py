"""Lowering the bodies of conditionals and loops as programs of their own.

ExecuTorch hands a delegate inside a body no constants: weights would arrive as inputs. As programs
of their own the bodies own them, and what is left of each is put back in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from qcore.control_flow import direct_bodies, drop_unread_operands, operands_of
from qcore.graph import clone, control_flow_bodies
from qcore.lowering import held_tensors
from qcore_executorch.rewriting import drop_unread

__all__ = ["has_bodies", "has_loops", "passes_constants", "put_back"]


def has_bodies(program: ExportedProgram) -> bool:
    """Return whether a program has conditionals or loops.

    Args:
        program: The exported program.
    """
    return bool(list(control_flow_bodies(program.graph_module)))


def has_loops(program: ExportedProgram) -> bool:
    """Return whether a program has loops.

    Args:
        program: The exported program.
    """
    calls = [call for _, call, _ in control_flow_bodies(program.graph_module)]
    return any(call.target is torch.ops.higher_order.while_loop for call in calls)


def passes_constants(program: ExportedProgram) -> bool:
    """Return whether any conditional or loop passes its bodies constants of the program.

    Args:
        program: The exported program.
    """
    constants = _constants(program)
    return any(
        isinstance(operand, Node) and operand.name in constants
        for _, call, _ in control_flow_bodies(program.graph_module)
        for operand in operands_of(call)
    )


def put_back(edge: Any, program: ExportedProgram, lower: Callable[[ExportedProgram], Any]) -> None:
    """Lower the bodies of a program and put them in the place of those of its lowered graph.

    Args:
        edge: The ``EdgeProgramManager`` of the program, lowered but for the bodies; changed.
        program: The exported program, with the bodies as captured.
        lower: Lowers an exported program and returns its ``EdgeProgramManager``.
    """
    constants = _constants(program)
    lowered = edge.exported_program()
    outer = lowered.graph_module
    calls: dict[Node, list[GraphModule]] = {}
    before = direct_bodies(program.graph_module)
    for (name, call, _), (_, captured_call, body) in zip(direct_bodies(outer), before, strict=True):
        operands = operands_of(captured_call)
        values = [
            constants.get(operand.name) if isinstance(operand, Node) else None
            for operand in operands
        ]
        own = torch.export.export(_with_constants(body, values), _examples(body, values))
        replacement = _spliced(body, values, lower(own).exported_program())
        setattr(outer, name, replacement)
        calls.setdefault(call, []).append(replacement)
    for call, bodies in calls.items():
        drop_unread_operands(call, bodies)
    drop_unread(lowered)  # Bodies own theirs now.
    outer.recompile()


def _constants(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the tensors that the program holds and never writes, by placeholder."""
    signature = program.graph_signature
    written, buffers = signature.buffers_to_mutate.values(), signature.inputs_to_buffers
    held = held_tensors(program)
    return {name: held[name] for name in held if buffers.get(name) not in written}


def _with_constants(body: GraphModule, values: Sequence[torch.Tensor | None]) -> GraphModule:
    """Return a body that owns the constants among its operands.

    Exporting a graph keeps the metadata of its nodes, which Arm's partitioner reads; exporting a
    module around it would not.
    """
    own = clone(body)
    placeholders = [node for node in own.graph.nodes if node.op == "placeholder"]
    for index, (node, value) in enumerate(zip(placeholders, values, strict=True)):
        if value is None:
            continue
        own.register_buffer(_buffer_name(index), value.detach())
        with own.graph.inserting_before(node):
            attribute = own.graph.get_attr(_buffer_name(index))
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        own.graph.erase_node(node)
    own.recompile()
    return own


def _buffer_name(index: int) -> str:
    return f"operand_{index}"


def _examples(body: GraphModule, values: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    return tuple(
        torch.empty(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
        for node, value in zip(placeholders, values, strict=True)
        if value is None
    )


def _spliced(
    body: GraphModule, values: Sequence[torch.Tensor | None], lowered: ExportedProgram
) -> GraphModule:
    """Return the lowered body with all operands of the captured one as its arguments."""
    graph = Graph()
    operands = []
    for node in body.graph.nodes:
        if node.op == "placeholder":
            operands.append(graph.placeholder(node.name))
            operands[-1].meta = dict(node.meta)
    free = [operand for operand, value in zip(operands, values, strict=True) if value is None]
    by_name = {_buffer_name(index): operand for index, operand in enumerate(operands)}
    given = iter(free)
    mapped = {
        spec.arg.name: next(given) if spec.kind is InputKind.USER_INPUT else by_name[spec.target]
        for spec in lowered.graph_signature.input_specs
    }
    copies: dict[Node, Node] = {}
    for node in lowered.graph.nodes:
        if node.op == "placeholder":
            copies[node] = mapped[node.name]
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(lowered.graph_module, graph)
