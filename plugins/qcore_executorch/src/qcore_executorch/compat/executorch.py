"""What is read of ExecuTorch by name, and changed of it for speed while a model is lowered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import getattr_static
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.fx.passes.infra.pass_base import PassResult

from qcore.compat import Change, Requirement, Wording

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = [
    "KERNEL_CALLS",
    "REASONS",
    "TAGS",
    "calls_delegate",
    "quick_merging",
    "quick_passes",
    "quick_tracing",
    "sparing_decompositions",
    "without_edge",
]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.6")
# Arguments of operators that are what they are.
_TORCHS: Final = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN: Final = (bool, int, float, complex, str, *_TORCHS)
_GROUPS: Final = "executorch.exir.backend.canonical_partitioners.group_partitioner"

#: What a partitioner logs of a node that it leaves.
REASONS: Final = Wording(
    *_EXECUTORCH,
    "executorch.exir.backend.utils:WhyNoPartition",
    ["node", "reason"],
    why="why a node is left to portable kernels is read there.",
)
#: What a program says of a call of a kernel.
KERNEL_CALLS: Final = Wording(
    *_EXECUTORCH,
    "executorch.exir.schema:KernelCall",
    ["op_index"],
    why="the operators outside of delegates are found by it.",
)
#: Where a partitioner marks what it delegates.
TAGS: Final = Wording(
    *_EXECUTORCH,
    "executorch.exir.backend.utils:tag_constant_data",
    ["delegation_tag"],
    why="what is delegated, and what is taken out again, goes by this mark.",
)
_DELEGATES: Final = Requirement(
    *_EXECUTORCH,
    "executorch.exir.delegate",
    ["executorch_call_delegate"],
    why="delegates are found by the operator that calls them.",
)
_EDGE_OPERATORS: Final = Wording(
    *_EXECUTORCH,
    "executorch.exir.dialects.edge._ops:EdgeOpOverload",
    ["_op"],
    why="an operator of the edge dialect is known by the one of ATen that it wraps.",
)
_PASSES: Final = Requirement(
    *_EXECUTORCH,
    "executorch.exir.pass_base",
    ["ExportPass", "ProxyValue"],
    why="what passes remember of an operator goes by the values in these.",
)
_DEPENDENCIES: Final = Change(
    *_EXECUTORCH,
    _GROUPS,
    ["_DependencyViewer"],
    why="it keeps a set of nodes for each node: gigabytes for a language model.",
)
_MERGING: Final = Change(
    *_EXECUTORCH,
    f"{_GROUPS}:GroupBasedPartitioner",
    ["_can_merge_partitions"],
    why="it walks the graph behind both partitions, for each pair of partitions.",
)
_EDGE: Final = Change(
    *_EXECUTORCH,
    "executorch.exir.program._program",
    ["_gen_edge_manager_for_partitioners"],
    why="it traces the whole model three times, of which one changes something.",
)
_DECOMPOSITIONS: Final = Change(
    __name__,
    "torch",
    ">=2.13,<2.14",
    "torch.export:ExportedProgram",
    ["run_decompositions"],
    why="it traces a program where no operator of the table is in it, too.",
)
_OPERATORS: Final = Change(
    *_EXECUTORCH,
    "executorch.exir.pass_base:_ExportPassBase",
    ["_fx"],
    why="each of a hundred passes executes each operator on tensors without values again: a third "
    "of a lowering for Arm.",
)
_TRACING: Final = Change(
    *_EXECUTORCH,
    "executorch.exir.pass_base:_ExportPassBase",
    ["call"],
    why="a pass that found nothing to change traces the whole graph again, as the one before did.",
)


def calls_delegate(target: Any) -> bool:
    """Say whether what a node calls is a delegate."""
    return target is _DELEGATES.checked().executorch_call_delegate


def without_edge(target: Any) -> Any:
    """Return the operator of ATen that one of the edge dialect wraps, and any other as it is."""
    return target._op if isinstance(target, _EDGE_OPERATORS.checked()) else target


@contextmanager
def quick_merging() -> Iterator[None]:
    """Let a partitioner find by sets of bits which partitions may be one; it finds the same.

    Yields:
        Nothing.
    """

    def can_merge(self: Any, first: int, second: int, partitions: dict[int, Any]) -> bool:
        reach = self.dependency_viewer
        pairs = zip(reach.of(first, partitions), reach.of(second, partitions), strict=True)
        inside, below, above = (one | other for one, other in pairs)
        return not below & above & ~inside

    with _DEPENDENCIES.applied(_Reach), _MERGING.applied(can_merge):
        yield


@contextmanager
def quick_passes() -> Iterator[None]:
    """Let passes remember what an operator gives for tensors of given sizes and types.

    Yields:
        Nothing.
    """
    (execute,) = _OPERATORS.originals()
    proxy, known = _PASSES.checked().ProxyValue, dict[Any, Any]()
    delegate = _DELEGATES.checked().executorch_call_delegate
    _EDGE_OPERATORS.checked()

    def remembered(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        mode, key = self.tracer.fake_tensor_mode, _signature((kind, target, args, kwargs), proxy)
        if target is delegate:
            result = _told(args[0], meta.data.get("val"), mode)
        else:
            # The results belong to the mode that made them.
            result = known.get((id(mode), key))
        if result is None:
            made = execute(self, kind, target, args, kwargs, meta)
            if key is not None and _signature(made.data, proxy) is not None:
                known[id(mode), key] = made.data
            return made
        interpreter = self.interpreter
        self.interpreter = SimpleNamespace(**{kind: lambda *_: result})
        try:
            return execute(self, kind, target, args, kwargs, meta)
        finally:
            self.interpreter = interpreter

    with _OPERATORS.applied(remembered):
        yield


def _told(module: Any, values: Any, mode: Any) -> Any:
    """Return what a delegate gives as it was told when made, and None where that may differ."""
    from torch._subclasses.fake_tensor import FakeTensor

    if not all(type(value) is FakeTensor and value.fake_mode is mode for value in values):
        return None
    weights = getattr(module, "data", module).original_module.state_dict.values()
    # Whether what it gives needs a gradient is found by executing what is in it.
    return None if any(one.requires_grad for one in (*values, *weights)) else tuple(values)


def _signature(value: Any, proxy: Any) -> Any:
    """Return what the result of an operator depends on, and None where that is more."""
    from torch._subclasses.fake_tensor import FakeTensor

    value = value.data if isinstance(value, proxy) else value
    if isinstance(value, tuple | list):
        parts = tuple(_signature(part, proxy) for part in value)
        return None if None in parts else (type(value), parts)
    if isinstance(value, dict):
        return _signature((*value, *value.values()), proxy)
    if type(value) is FakeTensor:
        sizes = tuple(map(_size, (*value.shape, *value.stride(), value.storage_offset())))
        if value.constant is not None or None in sizes:
            return None
        return value.dtype, value.device, value.dim(), sizes
    if type(value) is torch.SymInt:
        return _size(value)
    if value is None or isinstance(value, _PLAIN) or hasattr(value, "_op"):
        return type(value), value
    return None


def _size(size: Any) -> Any:
    """Return a size that can be compared without a guard, and None for one that depends on data."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    if type(size) is int:
        return size
    return None if free_unbacked_symbols(size) else size.node.expr


@contextmanager
def quick_tracing() -> Iterator[None]:
    """Let a pass that only traces a graph again leave one that is as the last tracing made it.

    Yields:
        Nothing.
    """
    (trace,) = _TRACING.originals()
    export_pass = _PASSES.checked().ExportPass
    # Of the last tracing: its graph, what that held, and the values, whose ids none else gets.
    graph: Any = None
    content: Any = None
    values: list[Any] = []

    def call(self: Any, module: GraphModule) -> Any:
        nonlocal graph, content
        again = module.graph is graph and _only_traces(type(self), export_pass)
        if again and _content(module) == content:
            return PassResult(module, True)
        result = trace(self, module)
        graph, content = result.graph_module.graph, _content(result.graph_module)
        values[:] = (node.meta.get("val") for node in graph.nodes)
        return result

    with _TRACING.applied(call):
        yield


def _only_traces(kind: type, export_pass: type) -> bool:
    """Say whether all that the tracing of a pass asks is ExecuTorch's own."""
    asked = {name for one in export_pass.__mro__ for name in vars(one) if not name.startswith("__")}
    asked -= {"call", "requires", "ensures", "_abc_impl"}
    return all(getattr_static(kind, name) is getattr_static(export_pass, name) for name in asked)


def _content(module: GraphModule) -> Any:
    """Return what tracing a graph depends on, and what is equal to nothing where that is more."""
    from torch.fx import GraphModule

    if any(isinstance(inner, GraphModule) for inner in module.children()):
        return object()
    nodes = module.graph.nodes
    return [(n.op, n.target, n.args, n.kwargs, id(n.meta.get("val"))) for n in nodes]


@contextmanager
def sparing_decompositions() -> Iterator[None]:
    """Let ExecuTorch trace a model once, with the operators that partitioners keep.

    Before that it makes the model functional by itself, which decomposing does, too; after it, it
    decomposes what no partitioner keeps, which is mostly nothing.

    Yields:
        Nothing.
    """
    (generate,), (decompose,) = _EDGE.originals(), _DECOMPOSITIONS.originals()
    # By the program, which stays alive: no other has its id meanwhile.
    done: dict[int, tuple[Any, Any]] = {}

    def run(self: Any, decomp_table: Any = None, *args: Any, **kwargs: Any) -> Any:
        if type(decomp_table) is dict and not decomp_table:
            return self
        _, before = done.get(id(self), (None, None))
        if before is not None and not _has(self, decomp_table, before):
            return self
        program = decompose(self, decomp_table, *args, **kwargs)
        done[id(program)] = program, decomp_table
        return program

    def sparing(*args: Any, **kwargs: Any) -> Any:
        try:
            with _DECOMPOSITIONS.applied(run):
                return generate(*args, **kwargs)
        finally:
            done.clear()

    with _EDGE.applied(sparing):
        yield


def _has(program: Any, table: Any, before: Any) -> bool:
    """Say whether an operator is in a program that a table decomposes, and one before did not."""
    from torch.fx import GraphModule

    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes}
    return any(target in table and target not in before for target in targets)


class _Reach:
    """The nodes of partitions, those that they lead to, and those that lead to them, as bits."""

    def __init__(self, root: GraphModule) -> None:
        nodes = list(root.graph.nodes)
        self._inside: dict[Node, int] = {n: 1 << i for i, n in enumerate(nodes)}
        self._below: dict[Node, int] = {}
        self._above: dict[Node, int] = {}
        for node in reversed(nodes):
            self._below[node] = self._united(node.users, self._inside, self._below)
        for node in nodes:
            self._above[node] = self._united(node.all_input_nodes, self._inside, self._above)
        self._known: dict[int, tuple[int, tuple[int, int, int]]] = {}

    def of(self, partition: int, partitions: dict[int, Any]) -> tuple[int, int, int]:
        """Return the nodes in, below and above a partition, which only ever grows."""
        nodes = partitions[partition].nodes
        count, (inside, below, above) = self._known.get(partition, (0, (0, 0, 0)))
        if count != len(nodes):
            added = list(islice(nodes, count, None))
            inside |= self._united(added, self._inside)
            below |= self._united(added, self._below)
            above |= self._united(added, self._above)
            self._known[partition] = len(nodes), (inside, below, above)
        return inside, below, above

    @staticmethod
    def _united(nodes: Iterable[Node], *sets: dict[Node, int]) -> int:
        united = 0
        for node in nodes:
            for bits in sets:
                united |= bits[node]
        return united
