"""Facts about the nodes of a captured graph that selection, annotation and reports share."""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from attrs import frozen
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node

from qcore.compat.torch import MODULES, NO_MODULE, OVERLOADS, PACKETS

__all__ = [
    "BODY",
    "ORIGINAL_NAME",
    "ORIGINAL_TARGET",
    "PARAMETER_NAME",
    "ModuleFrame",
    "argument_of",
    "arguments",
    "clone",
    "computes_floats",
    "control_flow_bodies",
    "differing_sizes",
    "each_dimension",
    "float_operands",
    "insert_constant",
    "is_compute_node",
    "is_constant",
    "is_dropout",
    "is_float_tensor",
    "is_observer",
    "module_frames",
    "module_path",
    "operator_name",
    "overload_packet",
    "positions_are_used",
    "remember_origin",
    "size_symbols",
    "tensor_attribute",
    "tensor_value",
]

# Operators that compute nothing a backend could quantize: structure, shapes, assertions.
_STRUCTURAL_NAMES: Final = re.compile(
    r"^(aten::(sym_\w+|_assert\w*|alias|detach\w*|lift_fresh\w*)|prim::device)\b"
)
_DROPOUTS: Final[tuple[Any, ...]] = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.dropout_.default,
)
# Their bodies are quantized and reported instead.
_CONTROL_FLOW: Final = frozenset({"cond", "while_loop"})
_STRICT_PREFIX: Final = re.compile(r"^L\[(['\"])self\1\]\.?")
_INDEX: Final = re.compile(r"\[(['\"]?)(\w+)\1\]")
_MODULES: Final = "._modules"
# What torch.export records for nodes that it adds itself, such as the size of an input.
_NO_MODULE: Final = NO_MODULE.checked()._EMPTY_NN_MODULE_STACK_KEY

#: Key in ``GraphModule.meta`` of the bodies of conditionals and loops of an annotated model.
BODY: Final = "qcore_body"

#: Key in ``node.meta`` of the name that a parameter has in the model, where its node's differs.
PARAMETER_NAME: Final = "qcore_parameter"

#: Key in ``node.meta`` of the operator that the user's model had, where a rewrite changed it.
ORIGINAL_TARGET: Final = "qcore_original_target"

#: Key in ``node.meta`` of the name that a node had in the user's model, where a rewrite changed it.
ORIGINAL_NAME: Final = "qcore_original_name"


@frozen
class ModuleFrame:
    """A module that a node was traced in.

    Attributes:
        path: Its name in the model, as in ``named_modules()``; empty for the root.
        type_name: Its class as ``module.qualname``; empty where the graph does not say.
    """

    path: str
    type_name: str


def module_frames(node: Node) -> tuple[ModuleFrame, ...]:
    """Return the modules around a node that ``torch.export`` recorded, the outermost first.

    A node of a conditional body, for which it records none, is placed by the parameter that it
    reads.
    """
    MODULES.checked()
    stack = node.meta.get("nn_module_stack") or {}
    frames = tuple(
        ModuleFrame(
            _normalized(path), type_name if isinstance(type_name, str) else _full(type_name)
        )
        for path, type_name in stack.values()
        if path != _NO_MODULE
    )
    if frames:
        return frames
    for source in node.all_input_nodes:
        name = str(source.meta.get(PARAMETER_NAME, source.target))
        if source.op == "get_attr" and "." in name:
            owner = name.rpartition(".")[0]
            parts = owner.split(".")
            return tuple(ModuleFrame(".".join(parts[:end]), "") for end in range(len(parts) + 1))
    return ()


def _normalized(path: str) -> str:
    path = _STRICT_PREFIX.sub("", path).replace(_MODULES, "")
    return _INDEX.sub(r".\2", path).lstrip(".").split("@")[0]


def _full(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def module_path(node: Node) -> str:
    """Return the name of the innermost module around a node; empty for the root."""
    frames = module_frames(node)
    return frames[-1].path if frames else ""


def operator_name(node: Node) -> str:
    """Return an operator's name as users write it, as in ``aten.conv2d.default``."""
    target = node.target
    is_overload = isinstance(target, torch._ops.OpOverload)
    return target.__name__ if callable(target) and not is_overload else str(target)


def overload_packet(node: Node) -> Any:
    """Return the operator of a node without its overload, such as ``aten.conv2d``; else None."""
    PACKETS.checked()
    return getattr(node.target, "overloadpacket", None)


def arguments(node: Node) -> Sequence[Any]:
    """Return what the schema of an operator says of its arguments; nothing for what has none."""
    OVERLOADS.checked()
    schema = getattr(node.target, "_schema", None)
    return () if schema is None else schema.arguments


def is_observer(node: Node) -> bool:
    """Say whether a node is an observer or a fake quantization of torchao's PT2E flow."""
    return node.op == "call_module" and str(node.target).startswith("activation_post_process")


def is_compute_node(node: Node) -> bool:
    """Say whether a node computes something that a backend could quantize."""
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name() not in _CONTROL_FLOW
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not _STRUCTURAL_NAMES.match(target.name()) and not _is_idle_dropout(node)


def is_dropout(node: Node) -> bool:
    """Say whether a node drops values in training."""
    return node.target in _DROPOUTS


def _is_idle_dropout(node: Node) -> bool:
    return is_dropout(node) and argument_of(node, "train", True) is False


def is_constant(node: Node) -> bool:
    """Say whether a value is computed from parameters and buffers alone."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen or current.op == "get_attr":
            continue
        seen.add(current)
        if current.op != "call_function":
            return False
        pending.extend(current.all_input_nodes)
    return True


def tensor_value(node: object) -> torch.Tensor | None:
    """Return the fake tensor that export recorded for a node, if it has exactly one."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, (FakeTensor, torch.Tensor)) else None


def computes_floats(node: Node) -> bool:
    """Say whether a node's value, or part of it, is of a floating or complex type."""
    values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return any(
        isinstance(value, torch.Tensor)
        and (value.dtype.is_floating_point or value.dtype.is_complex)
        for value in values
    )


def is_float_tensor(node: object) -> bool:
    """Say whether a node gives one float32 tensor, which is what observers can measure."""
    value = tensor_value(node)
    return value is not None and value.dtype == torch.float32


def float_operands(node: Node) -> list[Node]:
    """Return the inputs of a node that are float32 tensors, each once."""
    return [source for source in node.all_input_nodes if is_float_tensor(source)]


def argument_of(node: Node, name: str, default: Any) -> Any:
    """Return an argument by its name in the operator's schema.

    Args:
        node: An operator.
        name: The argument.
        default: What it is where the node does not give it.

    Returns:
        Its value.
    """
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    position = names.index(name)
    given = node.args[position] if len(node.args) > position else default
    return node.kwargs.get(name, given)


def each_dimension(value: Any, count: int = 1) -> list[int]:
    """Write out an argument such as ``stride``, which one number gives for all dimensions.

    Args:
        value: A number, or a sequence of one or ``count`` numbers; empty where it is not given.
        count: The dimensions.

    Returns:
        A number for each dimension.
    """
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * count if len(numbers) == 1 else numbers


def size_symbols(value: torch.Tensor) -> tuple[str | None, ...]:
    """Name the dynamic sizes of a fake tensor; equal names are one size.

    Args:
        value: The fake tensor.

    Returns:
        A name for each dimension; ``None`` for a size that is fixed or computed from others.
    """
    symbols = (None if isinstance(size, int) else size.node.expr for size in value.shape)
    return tuple(str(s) if s is not None and s.is_Symbol else None for s in symbols)


def differing_sizes(inputs: Iterable[tuple[str, Sequence[str | None], Sequence[int]]]) -> str:
    """Say which sizes of inputs differ that a model takes to be one; nothing where none do.

    Args:
        inputs: The name of each, the names of its sizes as :func:`size_symbols` gives them, and
            its shape.
    """
    seen: dict[str, tuple[str, int]] = {}
    for name, symbols, shape in inputs:
        for axis, (symbol, size) in enumerate(zip(symbols, shape, strict=False)):
            where = f"dimension {axis} of {name!r}"
            first, wanted = seen.setdefault(symbol, (where, size)) if symbol else (where, size)
            if size != wanted:
                return (
                    f"{first} is {wanted} and {where} is {size}, and the model was captured with "
                    "one size for both. Give both one size, or capture it with a "
                    "torch.export.Dim for each."
                )
    return ""


def positions_are_used(node: Node) -> bool:
    """Say whether anything reads the positions that a node gives beside its values."""
    return any(u.target is operator.getitem and u.args[1] == 1 and u.users for u in node.users)


def remember_origin(node: Node) -> None:
    """Put down a node's name and operator, before a rewrite changes them.

    Args:
        node: Any node; what was put down before is kept.
    """
    node.meta.setdefault(ORIGINAL_NAME, node.name)
    node.meta.setdefault(ORIGINAL_TARGET, node.target)


def insert_constant(model: GraphModule, before: Node, name: str, like: Node) -> Node:
    """Insert a node that reads a tensor which the graph module has under a name.

    Args:
        model: The graph module, with the tensor registered.
        before: The node to insert it in front of.
        name: The tensor's name.
        like: A node whose fake value belongs to the same tracing.

    Returns:
        The ``get_attr`` node.
    """
    with model.graph.inserting_before(before):
        attribute = model.graph.get_attr(name)
    from_tensor: Callable[..., Any] = like.meta["val"].fake_mode.from_tensor
    attribute.meta["val"] = from_tensor(tensor_attribute(model, attribute), static_shapes=True)
    return attribute


def tensor_attribute(model: GraphModule, node: Node) -> torch.Tensor:
    """Return the parameter or buffer that a ``get_attr`` node reads.

    Args:
        model: The graph module that owns the node.
        node: A ``get_attr`` node.

    Returns:
        The tensor itself.
    """
    value = operator.attrgetter(str(node.target))(model)
    assert isinstance(value, torch.Tensor), f"{node.target} is not a tensor"
    return value


def clone(model: GraphModule) -> GraphModule:
    """Copy a graph module so that its graph and its bodies' graphs may be changed.

    Args:
        model: Any graph module.

    Returns:
        A copy with graphs of its own; tensors and other submodules are shared.
    """
    with warnings.catch_warnings():
        # torch's own pytree specs warn about themselves when they are copied.
        warnings.simplefilter("ignore", FutureWarning)
        graph = copy.deepcopy(model.graph)
    for before, after in zip(model.graph.nodes, graph.nodes, strict=True):
        # A copied node is renamed if its name is a builtin's; "input" is one, and nn's usual name.
        after.name = before.name
    copied = GraphModule(model, graph)
    copied.meta = dict(model.meta)
    for name, child in model.named_children():
        if isinstance(child, GraphModule) and hasattr(copied, name):
            setattr(copied, name, clone(child))
    return copied


def control_flow_bodies(
    model: GraphModule, prefix: str = ""
) -> Iterator[tuple[str, Node, GraphModule]]:
    """Walk the bodies of conditionals and loops, nested ones after their parent.

    Args:
        model: A captured model.
        prefix: Path of ``model`` in its root, ending in a dot.

    Yields:
        The body's path in the root, the operator that runs it, and the body.
    """
    for node in model.graph.nodes:
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        for argument in node.all_input_nodes:
            if argument.op != "get_attr":
                continue
            body = operator.attrgetter(str(argument.target))(model)
            if isinstance(body, GraphModule):
                path = f"{prefix}{argument.target}"
                yield path, node, body
                yield from control_flow_bodies(body, f"{path}.")
