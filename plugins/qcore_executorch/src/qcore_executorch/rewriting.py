"""Rewriting an exported model, which is not exported again for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch._guards import detect_fake_mode
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg

from qcore.annotation import rewrite_by
from qcore.errors import LoweringError
from qcore.lowering import held_tensors, private_copy, user_input_names

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["Tensors", "drop_unread", "name_parameters", "rewritten"]

#: What a program holds, by the names of the nodes that stand for it.
Tensors: TypeAlias = Mapping[str, torch.Tensor]


def name_parameters(program: ExportedProgram) -> None:
    """Rename parameters whose names begin with a digit, as those of a ``torch.nn.Sequential`` do.

    ExecuTorch's passes name what they make of a parameter after it, and do not find it again where
    the name is no identifier.

    Args:
        program: The program, a copy of the caller's; changed in place.
    """
    for spec in program.graph_signature.input_specs:
        if spec.target is None or not spec.target[0].isdigit():
            continue
        name = f"layer_{spec.target}"
        for tensors in (program.state_dict, program.constants):
            if spec.target in tensors:
                tensors[name] = tensors.pop(spec.target)
        spec.target = name


def rewritten(
    program: ExportedProgram,
    wanted: Callable[[Node], bool],
    rewrite: Callable[[GraphModule, Node, Tensors], None],
) -> ExportedProgram:
    """Rewrite nodes of a converted model in ways that need new constants or other operators.

    Args:
        program: The exported converted model.
        wanted: Says whether a node is to be rewritten.
        rewrite: Takes the graph module, such a node and what the program holds, and changes the
            graph around the node. It may insert any function of tensors, nodes without fake
            values, and nodes that read buffers which it registers.

    Returns:
        The same program where no node is wanted, else a new one.
    """
    chosen = [node.name for node in program.graph.nodes if wanted(node)]
    if not chosen:
        return program
    own, tensors = private_copy(program), held_tensors(program)
    model, by_name = own.graph_module, {node.name: node for node in own.graph.nodes}
    before = {node: node.target for node in by_name.values()}
    for name in chosen:
        rewrite(model, by_name[name], tensors)
    model.graph.eliminate_dead_code()
    drop_unread(own)
    _lift(own)
    for node in list(model.graph.nodes):
        if node.op == "call_function" and before.get(node) is not node.target:
            _trace(model, node)
    for spec, value in zip(
        own.graph_signature.output_specs, model.graph.output_node().args[0], strict=True
    ):
        if isinstance(value, Node):
            spec.arg.name = value.name
    model.recompile()
    return own


def drop_unread(program: ExportedProgram) -> None:
    """Drop the tensors that a program holds and never reads.

    Args:
        program: The program; changed in place.
    """
    held, written = held_tensors(program), program.graph_signature.buffers_to_mutate.values()
    unread = {n.name: n for n in program.graph.nodes if n.op == "placeholder" and not n.users}
    specs = program.graph_signature.input_specs
    for spec in list(specs):
        if spec.arg.name in held and spec.arg.name in unread and spec.target not in written:
            program.graph.erase_node(unread[spec.arg.name])
            specs.remove(spec)
    kept = {spec.target for spec in specs}
    for tensors in (program.state_dict, program.constants):
        for target in [target for target in tensors if target not in kept]:
            del tensors[target]


def _lift(program: ExportedProgram) -> None:
    """Let a program hold the buffers which its graph reads itself, behind what it holds already."""
    model, specs = program.graph_module, program.graph_signature.input_specs
    users = user_input_names(program)
    nodes = list(model.graph.nodes)
    position = [n.op != "placeholder" or n.name in users for n in nodes].index(True)
    anchor, mode = nodes[position], detect_fake_mode([n.meta.get("val") for n in nodes])
    assert mode is not None
    for attribute in model.graph.find_nodes(op="get_attr"):
        name = str(attribute.target)
        value = getattr(model, name)
        if not isinstance(value, torch.Tensor):
            continue  # The body of a conditional or loop.
        delattr(model, name)
        program.state_dict[name] = value
        with model.graph.inserting_before(anchor):
            held = model.graph.placeholder(f"b_{name}")
        held.meta["val"] = mode.from_tensor(value, static_shapes=True)
        attribute.replace_all_uses_with(held, propagate_meta=False)
        model.graph.erase_node(attribute)
        argument = TensorArgument(held.name)
        specs.insert(position, InputSpec(InputKind.BUFFER, argument, name, persistent=True))
        position += 1


def _trace(model: GraphModule, node: Node) -> None:
    """Give a new operator its value; put the operators that a function calls in its place."""
    target: Any = node.target
    if isinstance(target, (torch._ops.OpOverload, BuiltinFunctionType)):
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        node.meta["val"] = target(*args, **kwargs)
    elif not rewrite_by(model, node, target, lambda made: True, whole=True):
        raise LoweringError(
            f"{node.name}: {target.__name__}, which stands for an operator, cannot be traced. Let "
            "it compute its constants from its arguments."
        )
