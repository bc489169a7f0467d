"""The values that the modules of a model have at each stage of its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from qcore.annotation import BATCH_NORMS
from qcore.graph import (
    ORIGINAL_NAME,
    is_compute_node,
    is_float_tensor,
    is_observer,
    module_path,
)

__all__ = [
    "Anchor",
    "Trace",
    "anchors_of",
    "flat_inputs",
    "float_counterparts",
    "is_dequantize",
    "quantized_value",
]


@frozen
class Anchor:
    """The node that gives the value of a module.

    Attributes:
        module: The module's name; of an operator outside of all modules, its node's.
        node: The node's name in the transformed graph and those that are made of it.
        origin: Its name in the model as captured.
    """

    module: str
    node: str
    origin: str


def anchors_of(model: GraphModule) -> tuple[Anchor, ...]:
    """Find the last node of every module, in the order of the graph.

    Args:
        model: The transformed graph, in float.

    Returns:
        The nodes that give float tensors; inputs are none.
    """
    last: dict[str, Node] = {}
    for node in model.graph.nodes:
        if is_compute_node(node) and is_float_tensor(node):
            module = module_path(node) or node.name
            last.pop(module, None)
            last[module] = node
    return tuple(
        Anchor(module, node.name, str(node.meta.get(ORIGINAL_NAME, node.name)))
        for module, node in last.items()
    )


def float_counterparts(captured: GraphModule, anchors: tuple[Anchor, ...]) -> dict[str, str]:
    """Find the nodes of the captured model whose values the anchors have.

    Args:
        captured: The model as captured.
        anchors: Those of the transformed graph.

    Returns:
        Name in the captured graph by that in the transformed one. A convolution into which a batch
        norm was folded has the value of that; nodes that a rewrite made have none.
    """
    nodes = {node.name: node for node in captured.graph.nodes}
    kept = {anchor.origin for anchor in anchors}
    found = {}
    for anchor in anchors:
        node = nodes.get(anchor.origin)
        if node is None:
            continue
        users = list(node.users)
        if len(users) == 1 and users[0].target in BATCH_NORMS and users[0].name not in kept:
            node = users[0]
        found[anchor.node] = node.name
    return found


def flat_inputs(model: GraphModule, sample: Any) -> list[Any]:
    """Return a sample as the values of a graph's placeholders, in their order."""
    info = getattr(model.graph._codegen, "pytree_info", None)
    if isinstance(sample, Mapping) and info is not None:
        names = info.in_spec.children()[1].context or ()
        sample = [sample[name] for name in names] if set(names) == set(sample) else sample
    return list(tree_leaves(sample))


def quantized_value(node: Node) -> Node | None:
    """Return the dequantize node that gives a node's value as it is after quantizing, if any."""
    for user in node.users:
        if _is("quantize", user) and user.args[0] is node:
            for reader in user.users:
                if _is("dequantize", reader):
                    return reader
    return None


def is_dequantize(node: Node) -> bool:
    """Say whether a node gives the float values of quantized ones."""
    return _is("dequantize", node)


def _is(kind: str, node: Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name.startswith(f"{kind}_per_")


class Trace(Interpreter):  # type: ignore[misc]
    """Runs a graph and keeps the values of some nodes, as they are after quantizing.

    Args:
        model: The graph.
        names: The nodes.
        rounds: Whether observers round as what they observed says: fake quantization.
        references: Values to go on with in place of these nodes', so that each node is fed with
            what it would get in float; ``None`` goes on with the graph's own.

    Attributes:
        values: The value of each node, by its name.
        computed: The same before it was quantized.
    """

    def __init__(
        self,
        model: GraphModule,
        names: frozenset[str],
        *,
        rounds: bool = False,
        references: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        self._names = names
        self._rounds = rounds
        self._references = references or {}
        self.computed: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}

    def of(self, inputs: list[Any]) -> list[Any]:
        """Run the graph.

        Args:
            inputs: The values of its placeholders.

        Returns:
            The leaves of its output.
        """
        with torch.no_grad():
            return list(tree_leaves(self.run(*inputs, enable_io_processing=False)))

    def run_node(self, node: Node) -> Any:
        """Run one node, keep its value, and put the float value in its place."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        made = None if source is None else self.computed.get(source.name)
        if made is not None and (_is("quantize", node) or is_observer(node)):
            args = (made, *args[1:])  # What the module made, not what it should have.
        if is_observer(node) and self._rounds:
            value = _rounded(self.fetch_attr(str(node.target)), args[0])
        elif is_observer(node):
            value = args[0]
        else:
            value = getattr(self, node.op)(node.target, args, kwargs)
        anchor = node if node.name in self._names else _anchor_behind(node)
        if anchor is None or anchor.name not in self._names:
            return value
        if anchor is node:
            self.computed[node.name] = value
        self.values[anchor.name] = value
        return self._references.get(anchor.name, value)


def _anchor_behind(node: Node) -> Node | None:
    """Return the node whose quantized value a node gives."""
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if is_observer(node):
        return source
    if source is not None and _is("dequantize", node) and _is("quantize", source):
        quantized = source.args[0]
        return quantized if isinstance(quantized, Node) else None
    return None


def _rounded(observer: Any, value: Any) -> Any:
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if not isinstance(value, torch.Tensor) or low is None or high is None:
        return value
    if getattr(observer, "is_dynamic", False):
        smallest = torch.finfo(torch.float32).eps
        scale, zero_point = torch.ops.quantized_decomposed.choose_qparams.tensor(
            value, low, high, getattr(observer, "eps", smallest), observer.dtype
        )
    else:
        scale, zero_point = observer.calculate_qparams()
    axis = getattr(observer, "ch_axis", -1)
    scale, zero_point = scale.float(), zero_point.to(torch.float32)
    if scale.numel() > 1:
        shape = [1] * value.dim()
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    levels = (value / scale + zero_point).round().clamp(low, high)
    return (levels - zero_point) * scale
