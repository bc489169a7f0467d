"""What an exported converted model needs before ExecuTorch's XNNPACK partitioner sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qcore.annotation import layer_of
from qcore.graph import argument_of
from qcore_executorch.graphs import explicit_pool_strides
from qcore_executorch.kernels import portable_forms
from qcore_executorch.rewriting import Tensors, rewritten
from qcore_xnnpack.float_forms import in_delegable_forms

__all__ = [
    "drop_repeated_rounding",
    "dynamic_weights_per_channel",
    "fuse_padding",
    "merge_clamps",
    "merge_reshapes",
    "no_scalar_activations",
    "prepare_for_partitioner",
]

aten = torch.ops.aten

_QUANTIZE: Final = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE: Final = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_PADS: Final[tuple[Any, ...]] = (aten.pad.default, aten.constant_pad_nd.default)
_CONVOLUTIONS: Final[tuple[Any, ...]] = (aten.conv1d.default, aten.conv2d.default)
#: What leaves a value as it is where type, shape and strides stay; ExecuTorch drops it then.
_COPIES: Final[tuple[Any, ...]] = (
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.to.dtype,
    aten.to.dtype_layout,
)


def prepare_for_partitioner(program: ExportedProgram) -> ExportedProgram:
    """Apply every pass.

    Args:
        program: The exported converted model; changed in place.

    Returns:
        The program to lower: the same one, or a new one where weights had to be replaced.
    """
    program = in_delegable_forms(portable_forms(program))
    program = dynamic_weights_per_channel(program)
    graph = program.graph_module
    changed = [apply(graph) for apply in _PASSES]
    if any(changed):
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return program


def dynamic_weights_per_channel(program: ExportedProgram) -> ExportedProgram:
    """Write per-tensor weights of dynamic layers with one scale per channel, all of them equal.

    XNNPACK runs dynamic layers with per-channel weights only; the values stay the same.

    Args:
        program: The exported converted model.

    Returns:
        The same program where nothing had to change, else a new one.
    """
    return rewritten(program, _is_dynamic_per_tensor, _write_per_channel)


def _is_dynamic_per_tensor(node: Node) -> bool:
    operators = torch.ops.quantized_decomposed
    if layer_of(node) is None:
        return False
    activation, weight = node.args[:2]
    return (
        getattr(activation, "target", None) is operators.dequantize_per_tensor.tensor
        and getattr(weight, "target", None) is operators.dequantize_per_tensor.default
    )


def _write_per_channel(model: GraphModule, node: Node, tensors: Tensors) -> None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    source, scale, zero_point, *limits = weight.args[:6]
    layer = layer_of(node)
    assert layer is not None
    channels = node.meta["val"].shape[layer.output_axis]
    scales = torch.full((channels,), float(scale))
    zeros = torch.full((channels,), int(zero_point), dtype=torch.int64)
    parameters = []
    for name, value in (("scales", scales), ("zero_points", zeros)):
        model.register_buffer(f"_{name}_{node.name}", value)
        with model.graph.inserting_before(node):
            parameters.append(model.graph.get_attr(f"_{name}_{node.name}"))
    with model.graph.inserting_before(node):
        restored = model.graph.call_function(
            torch.ops.quantized_decomposed.dequantize_per_channel.default,
            (source, *parameters, layer.weight_axis(node), *limits),
        )
    restored.meta = dict(weight.meta)
    node.replace_input_with(weight, restored)


def no_scalar_activations(model: GraphModule) -> int:
    """Give quantized values without dimensions one, around their quantize and dequantize.

    ExecuTorch's layout pass for XNNPACK stops at tensors without dimensions.

    Args:
        model: The graph; changed in place.

    Returns:
        How many nodes changed.
    """
    operators = torch.ops.quantized_decomposed
    changed = 0
    for node in list(model.graph.nodes):
        if node.target is not operators.quantize_per_tensor.default or node.meta["val"].dim():
            continue
        source = node.args[0]
        assert isinstance(source, Node)
        node.replace_input_with(source, _reshaped(source, node, [1]))
        node.meta["val"] = node.meta["val"].reshape(1)
        for restored in list(node.users):
            users = list(restored.users)
            restored.meta["val"] = restored.meta["val"].reshape(1)
            scalar = _reshaped(restored, users[0], [])
            # An exported program knows its outputs by name.
            scalar.name, restored.name = restored.name, f"{restored.name}_1d"
            for user in users:
                user.replace_input_with(restored, scalar)
        changed += 1
    return changed


def _reshaped(source: Node, before: Node, shape: list[int]) -> Node:
    with source.graph.inserting_before(before):
        node = source.graph.call_function(aten.reshape.default, (source, shape))
    node.meta = {**source.meta, "val": source.meta["val"].reshape(shape)}
    return node


def drop_repeated_rounding(model: GraphModule) -> int:
    """Drop pairs of quantize and dequantize that round again what is rounded.

    Such a pair stands behind a conversion to the type that a value has, as in the norms of many
    language models. What XNNPACK computes from the value is then wrong in places, and differs from
    process to process.

    Args:
        model: An exported converted model; changed in place.

    Returns:
        How many pairs were dropped.
    """
    dropped = 0
    for node in model.graph.find_nodes(op="call_function", target=_QUANTIZE):
        source = node.args[0]
        while source.target in _COPIES and _is_the_same(source, source.args[0]):
            source = source.args[0]
        if _rounds_again(node, source) and all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(source.args[0])
            dropped += 1
    return dropped


def merge_reshapes(model: GraphModule) -> int:
    """Let what reshapes a reshaped value reshape the value before it.

    XNNPACK drops the first of two such operators, also where the program returns its result, which
    is then whatever was in memory.

    Args:
        model: An exported converted model; changed in place.

    Returns:
        How many nodes changed.
    """
    changed = 0
    for node in model.graph.nodes:
        while node.target in _RESHAPES and (before := _reshaped_before(node.args[0])):
            if before.target is _DEQUANTIZE:  # each reader has its own, as torchao leaves them
                with model.graph.inserting_before(node):
                    own = model.graph.node_copy(before)
                own.meta, before = dict(before.meta), own
            node.replace_input_with(node.args[0], before)
            node.target = aten.reshape.default  # a view may have been one of contiguous memory
            changed += 1
    return changed


def _reshaped_before(value: Any) -> Any:
    """Return what a value was before it was reshaped; None where it was not, or is rounded anew."""
    if value.target is _DEQUANTIZE:
        rounded = value.args[0]
        reshape = rounded.args[0] if rounded.target is _QUANTIZE else None
        if reshape is None or reshape.target not in _RESHAPES:
            return None
        same = _rounds_again(rounded, reshape.args[0]) and rounded.args[1:] == value.args[1:6]
        return reshape.args[0] if same else None
    return value.args[0] if value.target in _RESHAPES else None


def _rounds_again(rounded: Node, source: Any) -> bool:
    """Say whether a quantize node has the parameters of the dequantize node that is its source."""
    return (
        rounded.target is _QUANTIZE
        and isinstance(source, Node)
        and source.target is _DEQUANTIZE
        and rounded.args[1:] == source.args[1:6]
    )


def _is_the_same(copy: Node, source: Node) -> bool:
    a, b = copy.meta["val"], source.meta["val"]
    return (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


def merge_clamps(model: GraphModule) -> int:
    """Let one operator clamp what two of them clamp one after the other.

    ExecuTorch fuses both into the float operator before them, and then knows the bounds of the
    second alone.

    Args:
        model: An exported converted model; changed in place.

    Returns:
        How many nodes changed.
    """
    changed = 0
    for node in model.graph.nodes:
        outer, before = _bounds(node), next(iter(node.all_input_nodes), node)
        inner = _bounds(before)
        if outer is None or inner is None or len(before.users) > 1:
            continue
        low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
        is_relu = (low, high) == (0.0, math.inf)
        node.target = aten.relu.default if is_relu else aten.hardtanh.default
        node.args = (before.args[0],) if is_relu else (before.args[0], low, high)
        node.kwargs = {}
        changed += 1
    return changed


def _bounds(node: Node) -> tuple[float, float] | None:
    """Return the bounds of an operator that only clamps; None of another."""
    if node.target is aten.hardtanh.default:
        return argument_of(node, "min_val", -1.0), argument_of(node, "max_val", 1.0)
    return _CLAMPS.get(node.target)


def fuse_padding(model: GraphModule) -> int:
    """Let padding with zeros run in int8 as part of the convolutions that it feeds.

    ExecuTorch takes a pad into the partition of a convolution where it stands between the
    dequantize and the convolution. A pair between pad and convolution with the parameters of the
    pad's input changes no value, and keeps XNNPACK's pad in float: on EfficientNet-Lite0 a quarter
    of the latency.

    Args:
        model: An exported converted model; changed in place.

    Returns:
        How many pads were fused.
    """
    fused = 0
    for pad in list(model.graph.nodes):
        if pad.op == "call_function" and pad.target in _PADS and _pads_with_zeros(pad):
            fused += _drop_pair_after(pad)
    return fused


def _pads_with_zeros(pad: Node) -> bool:
    # pad(x, sizes, mode, value) or constant_pad_nd(x, sizes, value)
    position = 3 if pad.target is aten.pad.default else 2
    value = pad.args[position] if len(pad.args) > position else None
    return not value and len(pad.args[1]) <= 4


def _drop_pair_after(pad: Node) -> bool:
    if len(pad.users) != 1:
        return False
    (rounded,) = pad.users
    if not _rounds_again(rounded, pad.args[0]):
        return False
    restored = list(rounded.users)
    if any(node.target is not _DEQUANTIZE for node in restored):
        return False
    users = [user for node in restored for user in node.users]
    # ExecuTorch takes the pad into one convolution's partition only.
    if len(users) != 1 or users[0].target not in _CONVOLUTIONS:
        return False
    for node in restored:
        node.replace_all_uses_with(pad, propagate_meta=False)
    return True


_RESHAPES: Final[tuple[Any, ...]] = (aten.reshape.default, aten.view.default)
# What ExecuTorch writes as relu or hardtanh -> its bounds; hardtanh has them as arguments.
_CLAMPS: Final[dict[Any, tuple[float, float]]] = {
    aten.relu.default: (0.0, math.inf),
    aten.relu6.default: (0.0, 6.0),
}

_PASSES: Final[tuple[Callable[[GraphModule], int], ...]] = (
    drop_repeated_rounding,
    merge_reshapes,
    merge_clamps,
    fuse_padding,
    explicit_pool_strides,
    no_scalar_activations,
)
