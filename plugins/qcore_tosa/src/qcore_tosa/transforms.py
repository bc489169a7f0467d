"""Rewrites before annotation: what will be quantized is decomposed into what TOSA has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.fx import GraphModule, Node

from qcore.annotation import decide, layer_of
from qcore.annotation.forms import in_quantizable_forms
from qcore.graph import (
    ORIGINAL_NAME,
    ORIGINAL_TARGET,
    control_flow_bodies,
    each_dimension,
    insert_constant,
    is_constant,
    is_float_tensor,
    remember_origin,
    tensor_value,
)
from qcore.plan import QuantizationPlan
from qcore.quiet import quiet
from qcore_executorch import import_executorch
from qcore_executorch.clamps import clamps_to_hardtanh
from qcore_executorch.graphs import explicit_pool_strides
from qcore_tosa.compat.executorch import ANNOTATION, LIMITS
from qcore_tosa.constants import fold_constants
from qcore_tosa.forms import TOSA_FORMS
from qcore_tosa.limits import refuse_written_buffers
from qcore_tosa.marks import is_kept, keep, unmark
from qcore_tosa.support import ARITHMETIC, TABLE

if TYPE_CHECKING:
    from executorch.backends.arm.common.arm_compile_spec import ArmCompileSpec

__all__ = ["decompose"]

aten = torch.ops.aten

# Layers with weights -> what may be fused into them.
_FUSED: Final = {t: row.fuses for row in TABLE if row.fuses for t in row.targets}
_ORIGIN: Final = (ORIGINAL_NAME, ORIGINAL_TARGET, "nn_module_stack")

# Pooling in one dimension -> in two, and what each argument after the input is for the new one.
_POOLS: Final[dict[Any, tuple[Any, tuple[int, ...]]]] = {
    aten.max_pool1d.default: (aten.max_pool2d.default, (1, 1, 0, 1)),
    aten.avg_pool1d.default: (aten.avg_pool2d.default, (1, 1, 0)),
    aten.adaptive_avg_pool1d.default: (aten.adaptive_avg_pool2d.default, (1,)),
}

_IMAGE_POOLS: Final = frozenset(target for target, _ in _POOLS.values())

_ARITHMETIC: Final = frozenset(target for row in ARITHMETIC for target in row.targets)


def decompose(model: GraphModule, plan: QuantizationPlan, spec: ArmCompileSpec) -> GraphModule:
    """Bring the operators that will be quantized into the forms that are annotated.

    Composite operators are decomposed, scalars become tensors; what stays in float is kept. The
    decompositions are ExecuTorch's own, so that they are those that its lowering expects.

    Args:
        model: The captured model; may be changed in place.
        plan: What the user selected.
        spec: The compile spec of the target, which some decompositions depend on.

    Returns:
        The model, with the same outputs in float.
    """
    refuse_written_buffers(model)
    fold_constants(model, plan)
    in_quantizable_forms(model, plan, TABLE, TOSA_FORMS, composites=True)
    # Some of these forms negate.
    in_quantizable_forms(model, plan, TABLE, {aten.neg.default: TOSA_FORMS[aten.neg.default]})
    _pool_in_two_dimensions(model, plan)
    explicit_pool_strides(model)
    clamps_to_hardtanh(model, plan, after=_FUSED)
    _add_batch_dimensions(model, plan)
    _mark(model, plan)
    before = [model, *(body for _, _, body in control_flow_bodies(model))]
    shapes = list(map(_output_shapes, before))
    for body in before[1:]:
        _keep(body)
    with quiet():
        transformed = _run_passes(model, spec)
    # prepare_pt2e hands on what the graph that it was given carries.
    transformed.meta = model.meta
    model = transformed
    after = [model, *(body for _, _, body in control_flow_bodies(model))]
    for graph, outputs in zip(after, shapes, strict=True):
        _unmark(graph)
        _restore_shapes(graph, outputs)
    _add_zero_biases(model, plan)
    return model


def _pool_in_two_dimensions(model: GraphModule, plan: QuantizationPlan) -> None:
    """Give pooling in one dimension a second one, of size one.

    ExecuTorch does it after quantization, when the new operators have no scales.
    """
    for node in list(model.graph.nodes):
        if node.target not in _POOLS or plan.config_for(node) is None:
            continue
        remember_origin(node)
        node.target, neutral = _POOLS[node.target]
        sizes = zip(neutral, map(each_dimension, node.args[1:]), strict=False)
        # A stride that is not given is an empty list.
        wider = [[fill, *size] if size else [] for fill, size in sizes]
        node.args = (node.args[0], *wider, *node.args[1 + len(neutral) :])
        _add_dimension(model, node, -2)


def _add_batch_dimensions(model: GraphModule, plan: QuantizationPlan) -> None:
    """Give convolutions and pooling of a single sample a batch of one, as TOSA's have.

    Where ExecuTorch's passes do it, the result is reshaped before it is quantized, or they stop.
    """
    for node in list(model.graph.nodes):
        rank = _rank(node)
        source = tensor_value(node.args[0]) if rank else None
        if source is None or source.dim() == rank or plan.config_for(node) is None:
            continue
        remember_origin(node)
        reader = next(iter(node.users))
        fused = len(node.users) == 1 and reader.target in _FUSED.get(node.target, ())
        _add_dimension(model, node, 0, last=reader if fused else node)


def _rank(node: Node) -> int | None:
    """Return how many dimensions a convolution or a pooling takes with a batch."""
    if node.target in _IMAGE_POOLS:
        return 4
    layer = layer_of(node)
    return layer.rank if layer and layer.spatial and node.target in _FUSED else None


def _add_dimension(model: GraphModule, node: Node, dim: int, last: Node | None = None) -> None:
    """Give the first input of a node one more dimension, and take it away behind another node."""
    source, last = node.args[0], last or node
    assert isinstance(source, Node)
    with model.graph.inserting_before(node):
        wider = model.graph.call_function(aten.unsqueeze.default, (source, dim))
    wider.meta = {**node.meta, "val": source.meta["val"].unsqueeze(dim)}
    node.replace_input_with(source, wider)
    with model.graph.inserting_after(last):
        result = model.graph.call_function(aten.squeeze.dims, (last, [dim]))
    remember_origin(last)
    result.meta = dict(last.meta)
    last.replace_all_uses_with(result, lambda user: user is not result)
    for changed in {node, last}:
        changed.meta["val"] = changed.meta["val"].unsqueeze(dim)


def _keep(body: GraphModule) -> None:
    """Let the passes leave a body alone; it is transformed by itself, when its turn comes."""
    for node in body.graph.nodes:
        keep(node)


def _mark(model: GraphModule, plan: QuantizationPlan) -> None:
    """Tell the passes what to keep, and put down what the user's rules go by."""
    decisions = decide(model, plan, TABLE, "tosa")
    for node in model.graph.nodes:
        decision = decisions.get(node)
        if node.op == "call_function":
            quantized = decision is not None and decision.is_quantized
            keep(node, not (quantized or _is_integer_form(node)))
        elif node.op == "placeholder":
            keep(node, plan.selectors.is_empty)
        remember_origin(node)


def _is_integer_form(node: Node) -> bool:
    """Say whether an operator handles integers alone, in a way that is safe to rewrite.

    Integer arithmetic is not: its scalars would become tensors of another type.
    """
    floats = is_float_tensor(node) or any(map(is_float_tensor, node.all_input_nodes))
    known = TABLE.pattern_for(node) is not None
    return known and not floats and node.target not in _ARITHMETIC


def _unmark(model: GraphModule) -> None:
    for node in reversed(model.graph.nodes):
        unmark(node)
        reader = next(iter(node.users), None)
        if ORIGINAL_NAME not in node.meta and reader is not None:
            # Some decompositions leave out where their first steps come from.
            inherited = {key: reader.meta[key] for key in _ORIGIN if key in reader.meta}
            node.meta = {**node.meta, **inherited}
    names = {node.meta.get(ORIGINAL_NAME, node.name): node for node in model.graph.nodes}
    taken = {node.name for node in model.graph.nodes}
    for name, node in names.items():
        # The last node of a decomposition computes the value that had the name.
        if node.name != name and name not in taken:
            node.name = name


def _outputs(model: GraphModule) -> list[object]:
    # One entry for each output: two of them may be one node, before or after the passes.
    leaves: list[object] = torch.utils._pytree.tree_leaves(model.graph.output_node().args)
    return leaves


def _output_shapes(model: GraphModule) -> list[torch.Size | None]:
    values = map(tensor_value, _outputs(model))
    return [None if value is None else value.shape for value in values]


def _restore_shapes(model: GraphModule, shapes: list[torch.Size | None]) -> None:
    """Give outputs the rank back that they had.

    The passes make tensors of one element of scalars, and so of what is computed with them; a loop
    stops where its condition is no scalar.
    """
    output = model.graph.output_node()
    # A loop's body hands on what it only reads, too, after a pass that appends it.
    for node, shape in dict(zip(_outputs(model), shapes, strict=False)).items():
        value = tensor_value(node)
        if not isinstance(node, Node) or value is None or shape is None:
            continue
        if value.dim() == len(shape) or value.numel() != shape.numel():
            continue
        with model.graph.inserting_before(output):
            scalar = model.graph.call_function(aten.reshape.default, (node, list(shape)))
        scalar.meta = {**node.meta, "val": value.reshape(shape)}
        output.replace_input_with(node, scalar)
    model.recompile()


def _run_passes(model: GraphModule, spec: ArmCompileSpec) -> GraphModule:
    import_executorch("executorch.backends.arm._passes")
    blind = LIMITS.checked().ReplaceInfAndLimitValuesPass

    class Limits(blind):  # type: ignore[misc, valid-type]
        """Leaves alone what stays in float."""

        def call(self, graph_module: GraphModule) -> Any:
            kept = [(node, node.args) for node in graph_module.graph.nodes if is_kept(node)]
            result = super().call(graph_module)
            for node, args in kept:
                node.args = args
            result.graph_module.recompile()
            return result

    class Passes(ANNOTATION.checked()):  # type: ignore[misc]
        """Generates the code of the graph once, not before and after each of fifty passes."""

        def add_pass(self, pipeline_pass: Any) -> None:
            if type(pipeline_pass) is blind:
                bounds = pipeline_pass.neg_inf, pipeline_pass.pos_inf
                pipeline_pass = Limits(*bounds, tfa_pass=True)
            super().add_pass(pipeline_pass)

        def _transform_graph_module(self, graph_module: GraphModule) -> GraphModule:
            for one in self.passes:
                graph_module = one(graph_module).graph_module
            graph_module.recompile()
            return graph_module

    transformed = Passes(spec).transform_for_annotation_pipeline(model)
    assert isinstance(transformed, GraphModule)
    return transformed


def _add_zero_biases(model: GraphModule, plan: QuantizationPlan) -> None:
    """Give layers without a bias one of zeros: a bias that calibration corrects is quantized then.

    TOSA's convolutions have a bias in any case.
    """
    changed = False
    for node in list(model.graph.nodes):
        layer = layer_of(node) if node.target in _FUSED else None
        config = plan.config_for(node) if layer else None
        if (
            layer is None
            or config is None
            or config.output_activation is None
            or not is_float_tensor(node)
        ):
            continue
        args = [*node.args, *[None] * (3 - len(node.args))]
        if args[2] is not None or "bias" in node.kwargs or not is_constant(args[1]):
            continue
        channels = node.meta["val"].shape[layer.output_axis]
        if not isinstance(channels, int):
            continue
        args[2] = _zeros(model, node, channels)
        node.args = tuple(args)
        changed = True
    if changed:
        model.recompile()


def _zeros(model: GraphModule, node: Node, size: int) -> Node:
    name = f"_zero_bias_{node.name}"
    value = torch.nn.Parameter(
        torch.zeros(size, device=node.meta["val"].device), requires_grad=False
    )
    model.register_parameter(name, value)
    return insert_constant(model, node, name, node)
