"""``quantize`` and ``quantize_`` select alike, and read the same names of schemes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qcore
from qcore.errors import UnsupportedSchemeError
from qcore.formats import LABEL
from qcore.grammar import SchemeName
from qcore.plan import QuantizationPlan, RuleKind, Selectors
from qcore.schemes import LayerScheme, QuantizationScheme, parse_name
from qcore.source.rules import Layers, RuleSet
from qcore.source.scheme import SourceScheme, read_scheme

CONFIG = qcore.get_symmetric_quantization_config()
SOURCE = (LayerScheme(8, None, "per_channel", layer="linear"),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


MODEL = nn.Sequential(Block(), nn.Sequential(Block(), nn.Linear(4, 4)), nn.Linear(4, 4))
LAYERS = {layer.name: layer for layer in Layers(MODEL).all}
GRAPH = torch.export.export(MODEL.eval(), (torch.rand(1, 4),)).module()
NODES = {
    list(node.meta["nn_module_stack"].values())[-1][0]: node
    for node in GRAPH.graph.nodes
    if "linear" in str(node.target)
}
NAMES = ["0", "0.up", "1", "1.0", "1.0.down", "1.1", "2"]
GLOBS = ["*.up", "1.*", "**.down", "1.?", "[01]", "*.0.*"]
TYPES: list[Any] = [nn.Linear, Block, nn.Sequential]

some_keys = st.lists(st.sampled_from([*NAMES, *GLOBS, *TYPES]), max_size=6, unique=True)


def by_plan(keys: list[Any], name: str, everything: bool) -> str | None:
    rules = Selectors()
    if everything:
        rules.add(RuleKind.GLOBAL, "", CONFIG)
    for key in keys:
        kind = RuleKind.MODULE_NAME if isinstance(key, str) else RuleKind.MODULE_TYPE
        rules.add(kind, key, CONFIG)
    rule = QuantizationPlan(rules).select(NODES[name]).rule
    return None if rule is None else rule.key


def by_rules(keys: list[Any], name: str, everything: bool) -> str | None:
    default = SourceScheme("8w") if everything else None
    choice = RuleSet(default, dict.fromkeys(keys, "8w"), SOURCE, "toy").choose(LAYERS[name])
    return None if choice is None else choice.rule.key


@settings(max_examples=150, deadline=None)
@given(keys=some_keys, name=st.sampled_from(sorted(NODES)), everything=st.booleans())
def test_both_paths_choose_the_same_rule(keys: list[Any], name: str, everything: bool) -> None:
    assert by_plan(keys, name, everything) == by_rules(keys, name, everything)


@settings(max_examples=100, deadline=None)
@given(keys=some_keys, name=st.sampled_from(sorted(NODES)), data=st.data())
def test_the_order_of_rules_never_matters(keys: list[Any], name: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(keys))
    for select in (by_plan, by_rules):
        assert select(keys, name, True) == select(shuffled, name, True)


@settings(max_examples=100, deadline=None)
@given(keys=some_keys, name=st.sampled_from(sorted(NODES)))
def test_a_name_beats_a_type_and_a_type_beats_the_default(keys: list[Any], name: str) -> None:
    named = [key for key in keys if isinstance(key, str)]
    types = [key for key in keys if not isinstance(key, str)]
    for select in (by_plan, by_rules):
        alone = select(named, name, False) or select(types, name, False) or ""
        assert select(keys, name, True) == alone


labels = st.from_regex(LABEL, fullmatch=True)
names = st.builds(
    SchemeName,
    weight=labels,
    activation=st.none() | labels,
    is_dynamic=st.booleans(),
    granularity=st.sampled_from([None, "per_tensor", "per_channel", "per_group"]),
    group_size=st.none() | st.integers(1, 4096),
).filter(
    lambda n: (
        (n.activation is not None or not n.is_dynamic)
        and (n.granularity == "per_group" or n.group_size is None)
    )
)


@given(names)
def test_a_name_is_read_as_it_is_written(name: SchemeName) -> None:
    assert SchemeName.parse(str(name)) == name
    assert str(SchemeName.parse(str(name).upper())) == str(name)


@given(
    weight=st.sampled_from([2, 4, 8]),
    activation=st.sampled_from([None, 8, 16]),
    granularity=st.sampled_from(["per_tensor", "per_channel", "per_group"]),
    is_dynamic=st.booleans(),
)
def test_what_a_message_lists_is_a_name_of_that_scheme(
    weight: int, activation: int | None, granularity: Any, is_dynamic: bool
) -> None:
    scheme = QuantizationScheme(
        weight, activation, granularity, is_dynamic and activation is not None
    )
    assert scheme.is_meant_by(parse_name(str(scheme), (), "toy"))


@pytest.mark.parametrize(
    "text", ["8da8w static", "8w dynamic", "8a8w weight-only", "8a8w per-tensor 32", "w", "8a"]
)
def test_what_contradicts_itself_is_no_name(text: str) -> None:
    assert SchemeName.parse(text) is None


@pytest.mark.parametrize(
    ("text", "group_size"),
    [("8w", None), ("8w per-axis", "axis"), ("8w per-channel", "axis"), ("8w per-group 32", 32)],
)
def test_quantize_in_place_reads_the_same_names(text: str, group_size: Any) -> None:
    assert read_scheme(text, SOURCE, "toy") == SourceScheme("8w", group_size)


@pytest.mark.parametrize("read", [parse_name, read_scheme])
def test_a_mistyped_name_has_one_message(read: Any) -> None:
    with pytest.raises(
        UnsupportedSchemeError,
        match=r"'8wx' is not a scheme's name. toy executes: 8w .*\. Did you mean '8w'\?",
    ):
        read("8wx", SOURCE, "toy")
