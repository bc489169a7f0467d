"""Selection has one meaning: the most specific rule wins, whatever the order of the calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node

import qcore
from qcore.errors import SelectionError
from qcore.plan import QuantizationPlan, RuleKind, Selectors
from qcore.quantizer import Quantizer

aten = torch.ops.aten

CONFIGS = {
    name: qcore.get_symmetric_quantization_config(weight_qmax=level)
    for name, level in zip("abcdef", range(120, 126), strict=True)
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.proj = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.conv(x).relu()) + x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(), Block())
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _export(strict: bool = False) -> GraphModule:
    return torch.export.export(Model().eval(), (torch.randn(1, 3, 4, 4),), strict=strict).module()


GRAPH = _export()
NODES = {node.name: node for node in GRAPH.graph.nodes}
NAMES = ["features", "features.0", "features.1", "features.0.conv", "features.1.proj", "head"]
GLOBS = ["features.*", "features.**", "features.?.conv", "**conv", "*"]
config_or_none = st.sampled_from([None, *CONFIGS.values()])

RULES: list[tuple[RuleKind, Any]] = [
    (RuleKind.GLOBAL, ""),
    *((RuleKind.MODULE_NAME, name) for name in (*NAMES, *GLOBS)),
    *((RuleKind.MODULE_TYPE, kind) for kind in (Block, nn.Conv2d, nn.Linear, nn.Sequential)),
    *(
        (RuleKind.OPERATOR_TYPE, op)
        for op in (aten.conv2d.default, aten.conv2d, aten.add.Tensor, aten.relu)
    ),
    *((RuleKind.NODE_NAME, name) for name in ("conv2d", "conv2d_3", "linear", "add")),
]
some_rules = st.lists(
    st.tuples(st.sampled_from(RULES), config_or_none), max_size=7, unique_by=lambda r: str(r[0])
)


def _plan(rules: list[tuple[tuple[RuleKind, Any], Any]]) -> QuantizationPlan:
    selectors = Selectors()
    for (kind, selected), config in rules:
        selectors.add(kind, selected, config)
    return QuantizationPlan(selectors)


@settings(max_examples=60, deadline=None)
@given(rules=some_rules, data=st.data())
def test_the_order_of_the_calls_does_not_matter(rules: list[Any], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rules))
    first, second = _plan(rules), _plan(list(shuffled))
    for node in GRAPH.graph.nodes:
        assert first.config_for(node) == second.config_for(node)


@settings(max_examples=60, deadline=None)
@given(rules=some_rules)
def test_a_more_specific_kind_of_rule_is_never_beaten(rules: list[Any]) -> None:
    chosen, everything = _plan(rules), [[rule] for rule in rules]
    for node in GRAPH.graph.nodes:
        if node.op != "call_function":
            continue
        matching = [_plan(alone).select(node).rule for alone in everything]
        kinds = [rule.kind for rule in matching if rule is not None]
        winner = chosen.select(node).rule
        assert (winner.kind if winner else None) == (max(kinds) if kinds else None)


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(st.sampled_from(NAMES), unique=True, min_size=1),
    configs=st.lists(config_or_none, min_size=6, max_size=6),
)
def test_the_longest_module_name_wins(paths: list[str], configs: list[Any]) -> None:
    given_configs = dict(zip(paths, configs, strict=False))
    plan = _plan([((RuleKind.MODULE_NAME, p), c) for p, c in given_configs.items()])
    for name, module in {"conv2d": "features.0.conv", "conv2d_3": "features.1.proj"}.items():
        around = [p for p in given_configs if module == p or module.startswith(f"{p}.")]
        expected = given_configs[max(around, key=len)] if around else None
        assert plan.config_for(NODES[name]) == expected


@settings(max_examples=40, deadline=None)
@given(rules=some_rules, name=st.sampled_from(NAMES))
def test_none_for_a_module_keeps_it_and_only_it_in_float(rules: list[Any], name: str) -> None:
    rules = [rule for rule in rules if rule[0][0] not in (RuleKind.MODULE_NAME, RuleKind.NODE_NAME)]
    before, after = _plan(rules), _plan([*rules, ((RuleKind.MODULE_NAME, name), None)])
    for node in GRAPH.graph.nodes:
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        if name in paths:
            assert after.config_for(node) is None
        else:
            assert after.config_for(node) == before.config_for(node)


def test_an_exact_name_beats_a_glob_at_the_same_depth() -> None:
    a, b = CONFIGS["a"], CONFIGS["b"]
    plan = _plan(
        [((RuleKind.MODULE_NAME, "features.*"), a), ((RuleKind.MODULE_NAME, "features.0"), b)]
    )
    assert plan.config_for(NODES["conv2d"]) == b
    assert plan.config_for(NODES["conv2d_2"]) == a


def test_a_star_stays_within_one_component() -> None:
    plan = _plan([((RuleKind.MODULE_NAME, "*.conv"), CONFIGS["a"])])
    assert plan.config_for(NODES["conv2d"]) is None


def test_the_innermost_module_type_wins() -> None:
    plan = _plan(
        [((RuleKind.MODULE_TYPE, Block), CONFIGS["a"]), ((RuleKind.MODULE_TYPE, nn.Conv2d), None)]
    )
    assert plan.config_for(NODES["conv2d"]) is None
    assert plan.config_for(NODES["add"]) == CONFIGS["a"]


def test_a_module_type_selects_its_subclasses() -> None:
    class MyLinear(nn.Linear):
        pass

    globals()["MyLinear"] = MyLinear
    MyLinear.__qualname__ = "MyLinear"
    graph = torch.export.export(nn.Sequential(MyLinear(2, 2)), (torch.randn(1, 2),)).module()
    linear = next(n for n in graph.graph.nodes if n.target is aten.linear.default)
    plan = _plan([((RuleKind.MODULE_TYPE, nn.Linear), CONFIGS["a"])])
    assert plan.config_for(linear) == CONFIGS["a"]


def test_strict_and_non_strict_exports_are_selected_alike() -> None:
    plan = _plan([((RuleKind.MODULE_NAME, "features.1.proj"), CONFIGS["a"])])
    for graph in (GRAPH, _export(strict=True)):
        selected = [n.name for n in graph.graph.nodes if plan.config_for(n)]
        assert selected == ["conv2d_3"]


def test_a_module_used_twice_is_selected_both_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    graph = torch.export.export(Twice(), (torch.randn(1, 2),)).module()
    plan = _plan([((RuleKind.MODULE_NAME, "layer"), CONFIGS["a"])])
    calls = [n for n in graph.graph.nodes if n.target is aten.linear.default]
    assert [plan.config_for(n) for n in calls] == [CONFIGS["a"]] * 2


def test_a_filter_function_that_stops_is_named_with_the_node(toy: Callable[[], Quantizer]) -> None:
    quantizer = toy().set_global("8a8w").set_filter_function(lambda node: node.args[9] is None)
    with pytest.raises(SelectionError, match=r"set_filter_function stops at linear.*IndexError"):
        qcore.quantize(nn.Linear(4, 4), quantizer, [torch.rand(1, 4)])


def test_the_filter_function_only_takes_away() -> None:
    plan = _plan([((RuleKind.GLOBAL, ""), CONFIGS["a"])])
    plan.selectors.filter_function = lambda node: node.name != "conv2d"
    assert plan.config_for(NODES["conv2d"]) is None
    assert plan.select(NODES["conv2d"]).rule.kind is RuleKind.FILTER  # type: ignore[union-attr]
    assert plan.config_for(NODES["conv2d_1"]) == CONFIGS["a"]


def test_io_selects_inputs_and_outputs_and_nothing_else() -> None:
    plan = _plan([((RuleKind.IO, ""), CONFIGS["a"])])
    assert [n.op for n in GRAPH.graph.nodes if plan.config_for(n)] == ["placeholder", "output"]


def test_a_later_rule_with_the_same_key_replaces_the_earlier() -> None:
    rules = [((RuleKind.MODULE_NAME, "head"), c) for c in (CONFIGS["a"], None, CONFIGS["b"])]
    assert _plan(rules).config_for(NODES["linear"]) == CONFIGS["b"]


@pytest.mark.parametrize(
    ("method", "key", "says"),
    [
        ("set_module_name", "feature.0", r"no module 'feature.0'. Did you mean .*'features.0'"),
        ("set_module_name", "zzz", r"no module 'zzz'. There are: features, "),
        ("set_module_type", nn.Conv1d, r"no module type .*Conv1d'. Did you mean .*Conv2d"),
        ("set_operator_type", aten.conv1d.default, r"no operator 'aten.conv1d.default'. Did you"),
        ("set_node_name", "conv2d_9", r"no node 'conv2d_9'. Did you mean 'conv2d"),
    ],
)
def test_a_rule_that_matches_nothing_names_near_misses(
    toy: Callable[[], Quantizer], method: str, key: object, says: str
) -> None:
    quantizer = toy().set_global("8a8w")
    getattr(quantizer, method)(key, None)
    with pytest.raises(SelectionError, match=says):
        quantizer.annotate(_export())


def test_every_rule_without_a_match_is_in_one_error(toy: Callable[[], Quantizer]) -> None:
    quantizer = toy().set_module_name("one", "8a8w").set_module_name("two", None)
    with pytest.raises(SelectionError, match="(?s)'one'.*'two'"):
        quantizer.annotate(_export())


def test_naming_a_folded_batch_norm_says_where_it_went(toy: Callable[[], Quantizer]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    quantizer = toy().set_global("8a8w").set_module_name("1", None)
    with pytest.raises(SelectionError, match="batch norm is folded into the convolution"):
        qcore.quantize(model, quantizer, [torch.randn(1, 3, 4, 4)])


@pytest.mark.parametrize(
    ("method", "key", "says"),
    [
        ("set_module_name", "", "takes a name as in model.named_modules"),
        ("set_module_name", nn.Linear, "takes a name"),
        ("set_module_type", nn.Linear(1, 1), "takes a module class"),
        ("set_operator_type", nn.functional.linear, "takes an ATen operator"),
    ],
)
def test_a_malformed_rule_is_refused_when_it_is_set(
    toy: Callable[[], Quantizer], method: str, key: object, says: str
) -> None:
    with pytest.raises(SelectionError, match=says):
        getattr(toy(), method)(key, "8a8w")


def test_a_filter_that_is_no_function_is_refused(toy: Callable[[], Quantizer]) -> None:
    with pytest.raises(SelectionError, match="takes a function"):
        toy().set_filter_function("conv")  # type: ignore[arg-type]


def test_every_setter_returns_the_quantizer(toy: Callable[[], Quantizer]) -> None:
    quantizer = toy()

    def keep(node: Node) -> bool:
        return True

    assert (
        quantizer.set_global("8a8w")
        .set_io("8a8w")
        .set_operator_type(aten.add.Tensor, None)
        .set_module_type(nn.Linear, None)
        .set_module_name("x", None)
        .set_node_name("y", None)
        .set_filter_function(keep)
        is quantizer
    )


def test_setting_twice_in_any_order_of_kinds_keeps_all_rules(toy: Callable[[], Quantizer]) -> None:
    calls = [("set_global", ("8a8w",)), ("set_module_name", ("head", None)), ("set_io", (None,))]
    shown = set()
    for order in itertools.permutations(calls):
        quantizer = toy()
        for method, arguments in order:
            getattr(quantizer, method)(*arguments)
        shown.add(repr(quantizer))
    assert shown == {
        "<Quantizer toy: set_global(config), set_io(None), set_module_name('head', None)>"
    }
