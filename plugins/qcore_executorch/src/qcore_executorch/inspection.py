"""Reading a lowered graph: which nodes a delegate took, which not, and why."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from qcore.lowering import recorded_module_path
from qcore.report import NodeRecord, StrayNode
from qcore_executorch.compat.executorch import (
    REASONS,
    TAGS,
    calls_delegate,
    without_edge,
)
from qcore_executorch.report import OTHERS, PORTABLE

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = [
    "DELEGATION_TAG",
    "Inspection",
    "as_written",
    "at_level",
    "calls_delegate",
    "computes",
    "inspect_lowered",
    "quantizes",
    "record",
    "stated_reasons",
    "without_edge",
]

#: Where partitioners note the delegate of a node, in its metadata.
DELEGATION_TAG: Final = "delegation_tag"

_QUANTIZING = ("quantize", "dequantize", "choose_qparams")
# What ExecuTorch makes of operators whose results have an order of dimensions.
_AS_WRITTEN: Final = {
    "dim_order_ops._clone_dim_order": "aten.clone.default",
    "dim_order_ops._empty_dim_order": "aten.empty.memory_format",
    "dim_order_ops._to_dim_order_copy": "aten.to.dtype",
}
# They read sizes, and keep alive what is asserted of them.
_OF_SIZES = ("aten.sym_", "aten._assert")


class Inspection:
    """The compute nodes of a lowered graph, sorted by where they run."""

    def __init__(self) -> None:
        self.delegates = 0
        self.delegated: list[NodeRecord] = []
        self.undelegated: list[NodeRecord] = []
        self.stray: list[StrayNode] = []


class _ReasonHandler(logging.Handler):
    """Collects what partitioners say about the nodes they leave."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.reasons: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # ExecuTorch logs the statement itself: an object that has the node and the reason.
        node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", None)
        if node is not None and reason:
            self.reasons.setdefault(str(node), str(reason).strip().rstrip("."))


@contextmanager
def at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Set the level of one of ExecuTorch's loggers while the context lasts.

    One thread lowers at a time, so none puts back what another has set.

    Args:
        logger: The logger.
        level: From which level on it speaks.

    Yields:
        Nothing.
    """
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def stated_reasons() -> Iterator[dict[str, str]]:
    """Collect the reasons that partitioners log while the context lasts.

    Yields:
        Reason by name of the node that was left; filled during the context.
    """
    REASONS.checked()
    logger = logging.getLogger("executorch")
    handler = _ReasonHandler()
    logger.addHandler(handler)
    try:
        with at_level(logger, logging.DEBUG):
            yield handler.reasons
    finally:
        logger.removeHandler(handler)


def inspect_lowered(root: GraphModule, reasons: Mapping[str, str]) -> Inspection:
    """Sort the nodes of a graph that partitioners have been over.

    Args:
        root: The edge graph after partitioning.
        reasons: Why nodes were left, by name, where a partitioner said so.

    Returns:
        The compute nodes inside the delegates and outside them.
    """
    TAGS.checked()
    found = Inspection()
    _visit(root, "", reasons, found)
    return found


def _visit(graph: GraphModule, prefix: str, reasons: Mapping[str, str], found: Inspection) -> None:
    from torch.fx import GraphModule

    for node in graph.graph.nodes:
        if node.op == "get_attr":
            body = getattr(graph, str(node.target), None)
            if isinstance(body, GraphModule):
                _visit(body, f"{prefix}{node.target}.", reasons, found)
        if not computes(node):
            continue
        if calls_delegate(node.target):
            found.delegates += 1
            lowered = getattr(graph, str(node.args[0].target))
            for inner in lowered.original_module.graph.nodes:
                if computes(inner) and not quantizes(inner):
                    found.delegated.append(record(inner, prefix, ""))
        elif quantizes(node):
            feeds = tuple(prefix + user.name for user in node.users)
            found.stray.append(
                StrayNode(prefix + node.name, _name_of(node), feeds, recorded_module_path(node))
            )
        else:
            why = (reasons[node.name],) if node.name in reasons else (PORTABLE, OTHERS)
            found.undelegated.append(record(node, prefix, *why))


def record(node: Node, prefix: str, reason: str, advice: str = "") -> NodeRecord:
    """Describe a node.

    Args:
        node: A node of the edge graph.
        prefix: The path of the body it is in, with a dot at the end; empty outside of bodies.
        reason: Why no delegate took it; empty for a delegated node.
        advice: What to try to have it delegated.

    Returns:
        The description.
    """
    module = recorded_module_path(node)
    return NodeRecord(prefix + node.name, _name_of(node), module, reason, advice)


def computes(node: Node) -> bool:
    """Say whether a node calls an operator of the model or a delegate."""
    from torch._ops import HigherOrderOperator

    # Python functions in a graph only take tuples apart or do arithmetic on sizes.
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    # A conditional or a loop only picks the body to run; the body's nodes are visited.
    if isinstance(node.target, HigherOrderOperator):
        return calls_delegate(node.target) or _wrapped(node) is not None
    if getattr(node.target, "__module__", "") in ("_operator", "math", "builtins"):
        return False
    return not _name_of(node).startswith(_OF_SIZES)


def _wrapped(node: Node) -> Any:
    """Return the operator that a node calls through another, as those that write are called."""
    from torch._ops import HigherOrderOperator, OpOverload

    first = node.args[0] if isinstance(node.target, HigherOrderOperator) and node.args else None
    called = without_edge(first)
    return called if isinstance(called, OpOverload) else None


def quantizes(node: Node) -> bool:
    """Say whether a node quantizes, dequantizes or chooses the parameters for that."""
    name = _name_of(node).partition(".")[2]
    return name.startswith(_QUANTIZING) or "quantize_affine" in name


def as_written(operator: str) -> str:
    """Return an operator of ExecuTorch's own as users write it, and any other as it is.

    Args:
        operator: Its name with the overload, as ``"dim_order_ops._to_dim_order_copy.default"``.

    Returns:
        Such as ``"aten.to.dtype"``.
    """
    return _AS_WRITTEN.get(operator.rpartition(".")[0], operator)


def _name_of(node: Node) -> str:
    from torch._ops import OpOverload

    target: Any = _wrapped(node) or node.target
    if not isinstance(target, OpOverload):
        target = without_edge(target)
    # Operators are named by str(); Python's and torch's own functions are not.
    name = str(target)
    if name.startswith("<"):
        return getattr(target, "__name__", "") or node.name
    return as_written(name)
