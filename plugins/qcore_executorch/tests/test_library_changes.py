"""Each change that is made to torch and ExecuTorch while a model is lowered fits it, and is needed.

A test that fails here says that the library does by itself what is changed: remove the change.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest
import ruamel.yaml
import torch
from torch._export import utils
from torch.fx import Graph, GraphModule
from torch.fx.traceback import NodeSource

import qcore
from qcore.compat import Requirement
from qcore.errors import LibraryChangedError
from qcore.testing.compat import LibraryChanges
from qcore_executorch import PTE, import_executorch
from qcore_executorch.compat.executorch import (
    _DELEGATES,
    _DEPENDENCIES,
    _EDGE_OPERATORS,
    _PASSES,
    KERNEL_CALLS,
    REASONS,
    TAGS,
    _Reach,
    calls_delegate,
    quick_merging,
    quick_passes,
    quick_tracing,
    sparing_decompositions,
)
from qcore_executorch.compat.ruamel import quick_yaml
from qcore_executorch.compat.torch import (
    deferred_code,
    quick_decompositions,
    shared_provenance,
    unrecorded_sizes,
    unrecorded_stacks,
)

GROUPS = "executorch.exir.backend.canonical_partitioners.group_partitioner"


class TestChanges(LibraryChanges):
    package = "qcore_executorch"


ASKED = [REASONS, TAGS, KERNEL_CALLS, _DELEGATES, _EDGE_OPERATORS, _PASSES]


@pytest.fixture(scope="module")
def converted() -> torch.fx.GraphModule:
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    return qcore.quantize(torch.nn.Linear(4, 4), quantizer, [torch.rand(2, 4)]).model


@pytest.mark.parametrize("requirement", ASKED, ids=lambda one: one.names[0])
def test_what_lowers_refuses_a_library_with_another_name(
    converted: torch.fx.GraphModule, requirement: Requirement, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Requirement.checked

    def renamed(self: Requirement) -> Any:
        if self is requirement:
            raise LibraryChangedError(self.owner)
        return checked(self)

    monkeypatch.setattr(Requirement, "checked", renamed)
    quantizer = qcore.get_quantizer("xnnpack")
    with pytest.raises(LibraryChangedError):
        PTE.operators(quantizer.lower(converted, torch.rand(2, 4), check=False).buffer)


def test_copies_of_a_node_copy_the_record_of_where_it_came_from() -> None:
    source = NodeSource(None, "a pass")
    assert copy.deepcopy(source) is not source
    with shared_provenance():
        assert copy.deepcopy(source) is source


def _calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, of: Callable[[], Any]) -> int:
    made = []
    theirs = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *args, **kw: made.append(args) or theirs(*args, **kw))
        of()
    return len(made)


@pytest.mark.parametrize(("context", "lists"), [(nullcontext, 2), (quick_decompositions, 1)])
def test_operators_are_listed_for_each_decomposition(
    context: Any, lists: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decompose_twice() -> None:
        with context():
            for _ in range(2):
                utils._materialize_cpp_cia_ops()

    listing = "_dispatch_get_registrations_for_dispatch_key"
    assert _calls(monkeypatch, torch._C, listing, decompose_twice) == lists


@pytest.mark.parametrize(("context", "again"), [(nullcontext, True), (quick_decompositions, False)])
def test_operators_outside_of_aten_are_looked_at_for_each_decomposition(
    context: Any, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with context():
        utils._collect_all_valid_cia_ops()
        looks = _calls(
            monkeypatch, utils, "_is_preservable_cia_op", utils._collect_all_valid_cia_ops
        )
    assert bool(looks) == again


def test_registering_a_kernel_evaluates_type_hints() -> None:
    def hint() -> Any:
        register = torch.ops.aten.add.Tensor.py_impl(torch._C.DispatchKey.AutogradHPU)
        return next(iter(register.__annotations__.values()))

    assert not isinstance(hint(), str)
    with quick_decompositions():
        assert isinstance(hint(), str)


def _proposals(seed: int) -> list[list[str]]:
    """Return what is proposed for a graph of random edges, half of it taken, some in groups."""
    grouping = import_executorch(GROUPS)
    choose = random.Random(seed)
    graph = Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(60):
        inputs = choose.choices(nodes[-6:], k=2)
        nodes.append(graph.call_function(torch.add, tuple(inputs)))
    graph.output(nodes[-1])
    taken = [n for n in nodes[1:] if choose.random() < 0.6]
    support = SimpleNamespace(is_node_supported=lambda modules, node: node in taken)
    groups = [taken[i : i + 2] for i in range(0, len(taken) - 1, 4)]
    found = grouping.GroupBasedPartitioner(
        GraphModule({}, graph), support, allows_single_node_partition=True, node_groups=groups
    ).propose_partitions()
    return sorted(sorted(n.name for n in one.nodes) for one in found)


@pytest.mark.parametrize("seed", range(8))
def test_partitions_found_by_sets_of_bits_are_those_found_by_walks(seed: int) -> None:
    walked = _proposals(seed)
    with quick_merging():
        assert _proposals(seed) == walked
    assert len(walked) > 1


def test_a_merge_walks_the_graph() -> None:
    grouping = import_executorch(GROUPS)
    graph = Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))
    root = GraphModule({}, graph)
    assert grouping._DependencyViewer(root).downstreams
    with quick_merging():
        assert not hasattr(grouping._DependencyViewer(root), "downstreams")


def test_what_decides_about_a_merge_asks_for_walks() -> None:
    viewer = _DEPENDENCIES.applied(_Reach)
    with viewer, pytest.raises(AttributeError, match="downstreams_of"):
        _proposals(0)


def test_the_table_of_operators_is_read_alike_without_a_parser_in_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = resources.files("executorch.exir.dialects.edge") / "edge.yaml"
    reader = ruamel.yaml.YAML(typ="safe")
    read = reader.load(table.read_text("utf-8"))
    monkeypatch.delattr(ruamel.yaml.parser.Parser, "check_event")
    with pytest.raises(AttributeError):
        reader.load("[]")
    with quick_yaml():
        assert reader.load(table.read_text("utf-8")) == read


@pytest.mark.parametrize(("context", "recorded"), [(nullcontext, True), (unrecorded_sizes, False)])
def test_what_is_made_functional_records_its_number_of_elements(
    context: Any, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies = import_executorch("torch.fx.experimental.proxy_tensor")
    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),), dynamic_shapes=sizes)

    def decompose() -> None:
        with context():
            program.run_decompositions({})

    assert bool(_calls(monkeypatch, proxies, "handle_sym_dispatch", decompose)) is recorded


@pytest.mark.parametrize(("context", "recorded"), [(nullcontext, True), (unrecorded_stacks, False)])
def test_an_operator_without_the_stack_of_its_model_gets_that_of_the_compiler(
    context: Any, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = import_executorch("torch.fx.proxy")
    taken = []
    theirs = recording.CapturedTraceback
    counting = SimpleNamespace(extract=lambda: taken.append(1) or theirs.extract())
    monkeypatch.setattr(recording, "CapturedTraceback", counting)
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.zeros(2, 4),))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    taken.clear()
    with context():
        program.run_decompositions()
    assert bool(taken) is recorded


@pytest.mark.parametrize(
    ("context", "again"), [(nullcontext, True), (sparing_decompositions, False)]
)
def test_a_model_is_traced_for_each_table_of_decompositions(
    context: Any, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exir = import_executorch()
    partition = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),))
    exported = import_executorch("torch.export.exported_program")

    def lower() -> None:
        with context():
            exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])

    traces = _calls(monkeypatch, exported, "_decompose_exported_program", lower)
    assert (traces > 1) is again


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("context", "executions"), [(nullcontext, 6), (quick_passes, 1)])
def test_each_pass_executes_each_operator_on_tensors_without_values(
    context: Any, executions: int, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = import_executorch("executorch.exir.pass_base")
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=shapes)

    def run_three() -> None:
        graph = program.graph_module
        with context():
            for _ in range(3):
                graph = passes.ExportPass()(graph).graph_module
        given, *made = [n.meta["val"].shape for n in graph.graph.nodes if n.op != "output"]
        assert made == [given, given]

    calls = _calls(monkeypatch, torch.fx.Interpreter, "call_function", run_three)
    assert calls == executions


@pytest.mark.parametrize(
    ("context", "gradients", "executions"),
    [(nullcontext, False, 1), (quick_passes, False, 0), (quick_passes, True, 1)],
)
def test_a_pass_executes_what_is_in_a_delegate(
    context: Any, gradients: bool, executions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exir, passes = import_executorch(), import_executorch("executorch.exir.pass_base")
    partition = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model = torch.nn.Linear(4, 4).eval().requires_grad_(gradients)
    program = torch.export.export(model, (torch.zeros(1, 4),))
    edge = exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])
    executed = []
    theirs = torch.fx.Interpreter.call_function

    def call_function(self: Any, target: Any, *args: Any) -> Any:
        executed.append(target)
        return theirs(self, target, *args)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", call_function)
    graph = edge.exported_program().graph_module
    with context():
        result = passes.ExportPass()(graph).graph_module
    assert sum(map(calls_delegate, executed)) == executions
    before, after = (
        [n.meta["val"][0].shape for n in g.graph.nodes if calls_delegate(n.target)]
        for g in (graph, result)
    )
    assert before == after == [(1, 4)]


@pytest.mark.parametrize(
    ("context", "changed", "traces"),
    [(nullcontext, False, 3), (quick_tracing, False, 1), (quick_tracing, True, 2)],
)
def test_a_pass_traces_a_graph_that_is_as_the_last_one_made_it(
    context: Any, changed: bool, traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = import_executorch("executorch.exir.pass_base")
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),))

    def run_three() -> None:
        graph = program.graph_module
        with context():
            for _ in range(2):
                graph = passes.ExportPass()(graph).graph_module
            node = next(n for n in graph.graph.nodes if n.op == "call_function")
            if changed:
                node.target = torch.ops.aten.tanh.default
            graph = passes.ExportPass()(graph).graph_module
        (call,) = (n for n in graph.graph.nodes if n.op == "call_function")
        assert (call.target is torch.ops.aten.tanh.default) is changed

    assert _calls(monkeypatch, passes._ExportPassBase, "call_submodule", run_three) == traces


def test_a_pass_that_asks_more_than_a_tracing_does_is_never_left_out() -> None:
    passes = import_executorch("executorch.exir.pass_base")

    class Doubled(passes.ExportPass):  # type: ignore[misc, name-defined]
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            once = super().call_operator(op, args, kwargs, meta)
            return super().call_operator(op, (once,), kwargs, meta)

    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),))
    with quick_tracing():
        graph = passes.ExportPass()(program.graph_module).graph_module
        for _ in range(2):
            graph = Doubled()(graph).graph_module
    assert sum(n.op == "call_function" for n in graph.graph.nodes) == 4


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32)])
def test_what_passes_remember_of_an_operator_is_of_its_sizes_and_types(other: torch.Tensor) -> None:
    passes = import_executorch("executorch.exir.pass_base")

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, y * 2

    program = torch.export.export(Twice(), (torch.zeros(2, 3), other))
    with quick_passes():
        result = passes.ExportPass()(program.graph_module).graph_module
    values = [n.meta["val"] for n in result.graph.nodes if n.op == "call_function"]
    assert [(v.shape, v.dtype) for v in values][1] == (other.shape, other.dtype)


@pytest.mark.parametrize(("context", "at_once"), [(nullcontext, True), (deferred_code, False)])
def test_a_graph_module_generates_code_before_it_is_called(
    context: Any, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))
    with context():
        generated = _calls(monkeypatch, Graph, "python_code", lambda: GraphModule({}, graph))
        assert bool(generated) is at_once
        assert GraphModule({}, graph)(torch.ones(1)) == -1
        assert "torch.neg" in GraphModule({}, graph).code
