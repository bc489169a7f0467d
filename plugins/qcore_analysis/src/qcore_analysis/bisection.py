"""Finding the module that a runtime computes wrongly, with programs that give values out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_structure

from qcore.cli.progress import Over
from qcore.graph import clone
from qcore_analysis.measures import distance_of
from qcore_analysis.samples import called
from qcore_analysis.tracing import Anchor, is_dequantize, quantized_value

if TYPE_CHECKING:
    from qcore import LoweredProgram

__all__ = ["Probe", "ends_of", "first_wrong", "returning", "wrong_module"]


@attrs.frozen(eq=False)
class Probe:
    """The value of a module, as a program gives it for each sample.

    Attributes:
        anchor: The module.
        expected: The converted model's value for each sample.
        actual: The program's.
    """

    anchor: Anchor
    expected: list[torch.Tensor]
    actual: list[torch.Tensor]


def first_wrong(anchors: Sequence[Anchor], is_wrong: Callable[[Anchor], bool]) -> Anchor | None:
    """Return the first anchor whose value is wrong, where all behind it are wrong, too.

    Args:
        anchors: In the order of the graph.
        is_wrong: Says whether a program that ends at an anchor gives a wrong value; asked at most
            ``ceil(log2(len(anchors) + 1))`` times.

    Returns:
        The anchor; None where not even the last value is wrong.
    """
    low, high = 0, len(anchors)
    while low < high:
        middle = (low + high) // 2
        if is_wrong(anchors[middle]):
            high = middle
        else:
            low = middle + 1
    return anchors[low] if low < len(anchors) else None


def wrong_module(
    model: GraphModule,
    lower: Callable[[GraphModule], LoweredProgram],
    ends: Sequence[Anchor],
    samples: Sequence[Any],
    outputs: Sequence[Any],
    least_db: float,
    over: Over,
) -> tuple[Anchor | None, list[Probe]]:
    """Find the first module that a program gets wrong whose output is wrong.

    Args:
        model: The converted model that the program was made of.
        lower: Makes a program of it, at most ``ceil(log2(len(ends)))`` times, and once more where
            the model does not return what its last module gives.
        ends: Where a program can end, as :func:`ends_of` finds them.
        samples: Inputs to compare with.
        outputs: What the program gave for them.
        least_db: The SQNR below which a program that ends at a module is wrong.
        over: Shows how many of the programs there were.

    Returns:
        The module, None where programs that end at single modules are right; and the values that
        programs gave, in the order of the graph.
    """
    programs = over(range((len(ends) - 1).bit_length()))
    probes: dict[str, Probe] = {}

    def is_wrong(end: Anchor) -> bool:
        cut = returning(model, [end])
        returned = outputs  # The whole program may be the one that ends there.
        if not _returns(model, end):
            next(programs, None)
            returned = lower(cut).run_many(samples)
        expected = [called(cut, sample) for sample in samples]
        pairs = [[tree_leaves(one)[0] for one in values] for values in (expected, returned)]
        probes[end.node] = Probe(end, *pairs)
        return distance_of(*pairs).sqnr_db < least_db

    found = first_wrong(ends[:-1], is_wrong)
    if ends and (found is None or _returns(model, ends[-1])) and is_wrong(ends[-1]):
        found = found or ends[-1]
    return found, [probes[end.node] for end in ends if end.node in probes]


def ends_of(model: GraphModule, anchors: Sequence[Anchor]) -> list[Anchor]:
    """Find where a program can end and compute the same up to there as the whole one.

    Args:
        model: The converted model.
        anchors: Its modules, in the order of the graph.

    Returns:
        Those that the converted model still has. A layer and the clamp behind it, of which the
        layer's own value is never quantized, are one step of a program: its end is the clamp's, its
        name the layer's.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    ends: list[Anchor] = []
    layers: dict[str, Anchor] = {}
    for anchor in anchors:
        if anchor.node not in nodes:
            continue
        node = nodes[anchor.node]
        users = [] if quantized_value(node) else list(node.users)
        if len(users) == 1 and quantized_value(users[0]):
            layers[users[0].name] = anchor
        else:
            ends.append(attrs.evolve(anchor, module=layers.get(anchor.node, anchor).module))
    return ends


def _returns(model: GraphModule, anchor: Anchor) -> bool:
    """Say whether a module's value is all that a model returns."""
    return _returned(model) == [_value_of(model, anchor)]


def _value_of(model: GraphModule, anchor: Anchor) -> Node:
    (node,) = (node for node in model.graph.nodes if node.name == anchor.node)
    return quantized_value(node) or node


def _returned(model: GraphModule) -> list[Any]:
    return list(tree_leaves(model.graph.output_node().args))


def returning(
    model: GraphModule, anchors: Sequence[Anchor], *, outputs: bool = False
) -> GraphModule:
    """Make a model return what its modules give; it is cut off behind the last.

    Args:
        model: The converted model; not changed.
        anchors: The modules.
        outputs: Whether to return what the model does behind that, too.

    Returns:
        A model that returns the modules' values, quantized and dequantized: one, or a tuple.
    """
    cut = clone(model)
    values = [_own(_value_of(cut, anchor)) for anchor in anchors]
    values += _returned(cut) if outputs else []
    alone = len(values) == 1
    cut.graph.output_node().args = (tuple(values),)
    spec = tree_structure(0 if alone else tuple(values))
    info = cut.graph._codegen.pytree_info
    cut.graph._codegen.pytree_info = info._replace(out_spec=spec)
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut


def _own(value: Node) -> Node:
    """Return a dequantize node that nothing else reads: a shared one keeps backends from fusing."""
    if not is_dequantize(value):
        return value
    with value.graph.inserting_after(value):
        return value.graph.node_copy(value)
