"""What goes into Vulkan graphs: ExecuTorch's partitioner, less what its lowering stops at."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qcore_executorch import import_executorch
from qcore_vulkan.compat.executorch import COPIES, NODES, OPERATORS, PARTITIONER

__all__ = ["edge_passes", "vulkan_partitioner"]


def vulkan_partitioner(compile_options: dict[str, Any] | None) -> Any:
    """Return ExecuTorch's partitioner for Vulkan with more reasons to leave a node.

    Args:
        compile_options: As ExecuTorch's ``VulkanPartitioner`` takes them.

    Returns:
        The partitioner; it logs why it leaves a node in the form of ExecuTorch's others.
    """
    module = import_executorch(PARTITIONER)
    base = import_executorch("executorch.exir.backend.partitioner").Partitioner
    operators = _operators()

    class Partitioner(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            self._theirs = module.VulkanPartitioner(compile_options)
            self.delegation_spec = self._theirs.delegation_spec

        def ops_to_not_decompose(self, program: Any) -> Any:
            return self._theirs.ops_to_not_decompose(program)

        def partition(self, program: Any) -> Any:
            with OPERATORS.applied(operators):
                return self._theirs.partition(program)

    return Partitioner()


def _operators() -> Any:
    (base,) = OPERATORS.originals()
    NODES.checked()
    utils = import_executorch("executorch.exir.backend.utils")
    why = utils.WhyNoPartition(logging.getLogger("executorch.backends.vulkan"))

    class Operators(base):  # type: ignore[misc,valid-type]
        _reading: set[Node] | None = None

        def is_node_supported(self, submodules: Any, node: Node) -> bool:
            reason = self._reason(node)
            if reason:
                self.log_skip(node, reason)
                return False
            return bool(super().is_node_supported(submodules, node))

        def log_skip(self, node: Node, reason: str) -> None:
            if node.op == "call_function":
                why(node=node, reason=reason)

        def _reason(self, node: Node) -> str:
            if node.op != "call_function":
                return ""
            fusable = node in self.fusable_nodes
            # What becomes one operator with what reads a number from it gives no tensor, either.
            if not _is_tensor(node) or (fusable and not all(map(_is_tensor, node.users))):
                return "it computes a size, and a Vulkan graph needs a tensor as output"
            if any(map(_is_double, (node, *node.all_input_nodes))):
                return "a Vulkan graph holds float64 as float32"
            if fusable:
                return ""
            if self._reading is None:
                self._reading = _nodes_that_read_tensors(node)
            if node not in self._reading:
                return "it reads no tensor, and a Vulkan graph needs one as input"
            if any(map(_is_infinite, (*node.args, *node.kwargs.values()))):
                return "ExecuTorch cannot serialize infinity or NaN as an argument"
            return ""

    return Operators


def _nodes_that_read_tensors(node: Node) -> set[Node]:
    """Return the nodes of a graph that take a tensor which comes from the graph's inputs.

    ExecuTorch cannot compile a delegate that gets sizes only, or nothing.
    """
    found: set[Node] = set()
    for current in node.graph.nodes:
        is_input = current.op in ("placeholder", "get_attr") and _is_tensor(current)
        if is_input or any(n in found and _is_tensor(n) for n in current.all_input_nodes):
            found.add(current)
    return found


def _is_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (torch.Tensor, tuple, list))


def _is_double(node: Node) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) is torch.float64


def _is_infinite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_infinite, value))
    return isinstance(value, float) and not math.isfinite(value)


def edge_passes(force_fp16: bool) -> list[Any]:
    """Return the passes over an edge graph that ExecuTorch's lowering to Vulkan needs before it.

    Args:
        force_fp16: Whether the delegate computes in float16.

    Returns:
        The passes; no result changes.
    """
    return [_finite_comparisons(force_fp16), _drop_copies()]


def _finite_comparisons(force_fp16: bool) -> Any:
    """Compare with the largest finite number instead of with infinity; NaN is neither, still.

    Attention that masks with ``-inf`` looks for rows that hold nothing else. A Vulkan graph is
    written as JSON first, and flatc does not read Python's ``Infinity``.
    """
    aten = import_executorch("executorch.exir.dialects._ops").ops.edge.aten
    result = import_executorch("executorch.exir.pass_base").PassResult

    def run(model: GraphModule) -> Any:
        changed = False
        for node in model.graph.find_nodes(op="call_function", target=aten.eq.Scalar):
            value, scalar = node.args
            if not isinstance(scalar, float) or not math.isinf(scalar):
                continue
            limits = torch.finfo(torch.float16 if force_fp16 else value.meta["val"].dtype)
            node.target = aten.gt.Scalar if scalar > 0 else aten.lt.Scalar
            node.args = (value, limits.max if scalar > 0 else limits.min)
            changed = True
        return result(model, changed)

    return run


def _drop_copies() -> Any:
    """Drop copies that change nothing, as ExecuTorch does inside a delegate.

    There they come to an end only after the delegate's outputs are counted. Where both a value and
    its copy leave it, the Vulkan graph then has one output less than its caller reads.
    """
    import_executorch("executorch.backends.vulkan._passes.remove_redundant_ops")

    class DropCopies(COPIES.checked()):  # type: ignore[misc]
        def _should_remove(self, node: Node) -> bool:
            if not super()._should_remove(node):
                return False
            source = node.args[1 if node.target in self._src_arg1_ops else 0]
            strides = [n.meta["val"].stride() for n in (source, node)]
            return bool(source.op != "placeholder" and strides[0] == strides[1])

    return DropCopies()
