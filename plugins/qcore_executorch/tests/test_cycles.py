"""No partition waits for itself, through other nodes or other partitions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qcore_executorch.cycles import split_cycles


def tagged(tags: dict[str, str]) -> SimpleNamespace:
    """Return the partitions of a graph: b, c read a; d reads b, c; e reads d, v, which reads w."""
    graph = torch.fx.Graph()
    a, w = graph.placeholder("a"), graph.placeholder("w")
    b, c = graph.call_function(torch.relu, (a,)), graph.call_function(torch.neg, (a,))
    d = graph.call_function(torch.add, (b, c))
    v = graph.call_function(torch.t, (w,))
    e = graph.call_function(torch.mul, (d, v))
    graph.output((e, b))
    for name, node in {"a": a, "b": b, "c": c, "d": d, "e": e, "v": v, "w": w}.items():
        node.name = name
        if name in tags:
            node.meta["delegation_tag"] = tags[name]
    program = SimpleNamespace(graph=graph)
    return SimpleNamespace(
        tagged_exported_program=program, partition_tags=dict.fromkeys(tags.values(), "xnnpack")
    )


def parts(result: SimpleNamespace) -> dict[str, str]:
    nodes = result.tagged_exported_program.graph.nodes
    return {n.name: n.meta["delegation_tag"] for n in nodes if "delegation_tag" in n.meta}


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({"b": "t", "d": "t"}, id="without a cycle"),
        pytest.param({"b": "t", "c": "t", "d": "u", "e": "u"}, id="one after the other"),
    ],
)
def test_partitions_in_order_stay_as_they_are(tags):
    result = tagged(tags)
    split_cycles(result)
    assert parts(result) == tags


def test_a_partition_that_waits_for_itself_through_a_node_is_split():
    result = tagged({"b": "t", "c": "t", "e": "t"})
    split_cycles(result)
    assert parts(result) == {"b": "t", "c": "t", "e": "t_2"}
    assert set(result.partition_tags) == {"t", "t_2"}


def test_partitions_that_wait_for_each_other_are_split():
    result = tagged({"b": "t", "e": "t", "c": "u", "d": "u"})
    split_cycles(result)
    found = parts(result)
    assert found["b"] != found["e"]
    assert set(result.partition_tags) == set(found.values())


def test_a_constant_and_what_is_made_of_it_stay_in_the_part_that_reads_it():
    result = tagged({"b": "t", "e": "t", "v": "t", "w": "t"})
    split_cycles(result)
    found = parts(result)
    assert found["w"] == found["v"] == found["e"] != found["b"]
