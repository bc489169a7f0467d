"""Graphs on their way into a compiler: what to check, drop and remember before it takes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qcore.compat.torch import EXPORTED, TRACING
from qcore.errors import LoweringError
from qcore.lowering.specs import TensorSpec, bounds_of, check_values, spec_of, user_input_names
from qcore.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from qcore.capture import Sample

__all__ = [
    "MODULE_KEY",
    "check_example_inputs",
    "derived_dynamic_shapes",
    "export_for_lowering",
    "private_copy",
    "recorded_module_path",
    "slim_metadata",
]

MODULE_KEY = "qcore_module"
"""Key in a node's ``custom`` metadata, which every tracing keeps, that holds the module path."""

# Lowering copies a node's metadata at every pass. None of these changes the program.
_DROPPED = (
    "stack_trace",
    "nn_module_stack",
    "eager_input_vals",
    "quantization_annotation",
    "seq_nr",
)


def recorded_module_path(node: Node) -> str:
    """Return the path of the module a node came from, as far as its metadata tells.

    Args:
        node: A node of a captured, converted or lowered graph.

    Returns:
        The path, empty for the outermost module or where nothing is recorded.
    """
    from qcore.graph import module_path

    return module_path(node) or str((node.meta.get("custom") or {}).get(MODULE_KEY, ""))


def slim_metadata(root: GraphModule) -> None:
    """Drop the metadata that only costs time, keeping each node's module path in a short form."""
    from torch.fx import GraphModule

    for module in root.modules():
        if not isinstance(module, GraphModule):
            continue
        for node in module.graph.nodes:
            path = recorded_module_path(node)
            for key in _DROPPED:
                node.meta.pop(key, None)
            if node.meta.get("from_node"):
                # Compilers number their debug handles by the oldest ancestor and read no other.
                node.meta["from_node"] = [_oldest(node.meta["from_node"][-1])]
            if path:
                node.meta["custom"] = {**(node.meta.get("custom") or {}), MODULE_KEY: path}


def _oldest(source: Any) -> Any:
    while source.from_node:
        source = source.from_node[-1]
    return source


def private_copy(
    program: ExportedProgram, graph: GraphModule | None = None, **others: Any
) -> ExportedProgram:
    """Return an exported program that may be changed without harm to the original.

    Args:
        program: The caller's program.
        graph: Its graph, where a copy of that was changed already.
        **others: Parts that are to be others, such as ``verifiers``.

    Returns:
        A program with a graph and tables of its own, and the same tensors in them.
    """
    from qcore.graph import clone

    EXPORTED.checked()
    with quiet():  # torch warns where it copies its own description of the inputs
        return program._update(
            clone(program.graph_module) if graph is None else graph,
            copy.deepcopy(program.graph_signature),
            state_dict=dict(program.state_dict),
            constants=dict(program.constants),
            **others,
        )


def check_example_inputs(program: ExportedProgram | GraphModule, sample: Sample) -> None:
    """Raise LoweringError, which names the argument, unless example inputs fit a graph."""
    from torch.export import ExportedProgram

    values = sample.flat()
    nodes, ranges = program.graph.find_nodes(op="placeholder"), {}
    if isinstance(program, ExportedProgram):
        users, ranges = user_input_names(program), program.range_constraints
        nodes = [node for node in nodes if node.name in users]
    if any("val" not in node.meta for node in nodes):
        return  # a graph that records no shapes: torch.export will judge
    specs: list[TensorSpec] = [
        spec_of(node.name, node.meta["val"], lambda size: _loose(bounds_of(ranges, size)))
        for node in nodes
    ]
    if len(specs) == len(values):
        # A number that was captured as a constant comes back from torch.export as it was given.
        values = [v for s, v in zip(specs, values, strict=True) if not s.is_number]
        specs = [s for s in specs if not s.is_number]
    check_values(specs, values, what="example input", error=LoweringError)


def _loose(bounds: tuple[int, int | None]) -> tuple[int, int | None]:
    """Undo the assumption of the tracer that a dynamic size is never 0 or 1."""
    low, high = bounds
    return (1 if low == 2 else low), high


def derived_dynamic_shapes(module: GraphModule, sample: Sample) -> Any:
    """Describe the dynamic sizes of a graph as torch.export takes them; None without any."""
    import torch
    from torch.export import Dim
    from torch.utils._pytree import tree_flatten, tree_unflatten

    leaves, structure = tree_flatten(sample.args or sample.kwargs)
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    dims: dict[Any, Any] = {}
    described: list[Any] = []
    for node in nodes:
        value = node.meta.get("val")
        sizes: dict[int, Any] = {}
        for index, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, int):
                continue
            expression = size.node.expr
            if not expression.is_Symbol:
                sizes[index] = Dim.AUTO  # computed from another dimension; torch finds out how
                continue
            if expression not in dims:
                low, high = _loose(bounds_of({}, size))
                dims[expression] = Dim(f"dim_{len(dims)}", min=low, max=high)
            sizes[index] = dims[expression]
        described.append(sizes or None)
    if not dims or len(described) != len(leaves):
        return None
    return tree_unflatten(described, structure)


def export_for_lowering(
    program: ExportedProgram | GraphModule, example_inputs: Any, dynamic_shapes: Any = None
) -> ExportedProgram:
    """Bring a converted model into the form that backends lower.

    Args:
        program: The ``GraphModule`` of ``convert_pt2e``, which is exported again, or an
            ``ExportedProgram``, which is used as captured. Left as it is.
        example_inputs: The model's arguments, in any memory layout: a tensor, a tuple or list of
            positional ones, or a mapping of keyword ones. None is allowed for an
            ``ExportedProgram``.
        dynamic_shapes: As ``torch.export.export`` takes it. None keeps the dynamic dimensions
            that the graph was captured with.

    Returns:
        A program of its own, with contiguous inputs and the metadata that lowering needs.

    Raises:
        LoweringError: ``program`` is neither, it is not on the CPU, or the example inputs do not
            fit.
    """
    import torch
    from torch.export import ExportedProgram, export
    from torch.fx import GraphModule

    from qcore.capture import Sample, remove_guards
    from qcore.graph import clone

    if not isinstance(program, (ExportedProgram, GraphModule)):
        raise LoweringError(
            f"Cannot lower a {type(program).__module__}.{type(program).__name__}. Pass the "
            "GraphModule of convert_pt2e or qcore.quantize, the model that qcore.quantize_ was "
            "given and has changed, or a torch.export.ExportedProgram."
        )
    for name, value in (*program.named_parameters(), *program.named_buffers()):
        if value.device.type != "cpu":
            raise LoweringError(
                f"{name!r} is on {value.device}, and programs are made on the CPU. Call "
                "model.cpu() before the model is captured, and give samples and example inputs "
                "that are there."
            )
    if not isinstance(example_inputs, (torch.Tensor, tuple, list, Mapping, type(None))):
        raise LoweringError(
            "example_inputs must be a tuple of the model's arguments, "
            f"got a {type(example_inputs).__name__}."
        )
    sample = None if example_inputs is None else Sample.of(example_inputs)
    if isinstance(program, ExportedProgram):
        if dynamic_shapes is not None:
            raise LoweringError(
                "dynamic_shapes cannot be changed on an ExportedProgram, which was captured with "
                "its own. Pass them to torch.export.export, or lower its GraphModule."
            )
        if sample is not None:
            check_example_inputs(program, sample)
        exported = private_copy(program)
    else:
        if sample is None:
            raise LoweringError(
                "A GraphModule is lowered with example inputs. Pass example_inputs: a tuple of "
                "the model's arguments."
            )
        check_example_inputs(program, sample)
        if dynamic_shapes is None:
            dynamic_shapes = derived_dynamic_shapes(program, sample)
        graph = clone(program)
        remove_guards(graph)
        _row_major_weights(graph)
        with TRACING:
            exported = export(graph, sample.args, sample.kwargs, dynamic_shapes=dynamic_shapes)
    slim_metadata(exported.graph_module)
    return exported


def _row_major_weights(model: GraphModule) -> None:
    """Give a graph dense weights: compilers take the layout of a weight for that of the data."""
    from qcore.graph import tensor_attribute

    bodies = {name for name, _ in model.named_children()}
    for node in model.graph.nodes:
        if node.op != "get_attr" or str(node.target) in bodies:
            continue
        weight = tensor_attribute(model, node)
        if weight.dim() >= 4 and not weight.is_contiguous():
            name = f"_row_major_{str(node.target).replace('.', '_')}"
            if "." not in str(node.target):  # Submodules are the caller's, too.
                name = str(node.target)
                delattr(model, name)
            model.register_buffer(name, weight.detach().contiguous())
            node.target = name
    model.recompile()
