"""Finding the module that a runtime computes wrongly, with programs that end in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_structure

from qcore.cli.progress import Over
from qcore.graph import clone
from qcore_analysis.measures import distance_of
from qcore_analysis.samples import as_example, called
from qcore_analysis.tracing import Anchor, quantized_value

if TYPE_CHECKING:
    from qcore import Quantizer

__all__ = ["ending_at", "ends_of", "first_wrong", "wrong_module"]


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
    quantizer: Quantizer,
    anchors: Sequence[Anchor],
    samples: Sequence[Any],
    least_db: float,
    lowering: Mapping[str, Any],
    over: Over,
) -> Anchor | None:
    """Find the first module that a program gets wrong whose output is wrong.

    Args:
        model: The converted model that the program was made of.
        quantizer: Lowers it, at most ``ceil(log2(len(anchors)))`` times, and once more where the
            model does not return what its last module gives.
        anchors: Its modules, in the order of the graph.
        samples: Inputs to compare with.
        least_db: The SQNR below which a program that ends at a module is wrong.
        lowering: Options for ``quantizer.lower``.
        over: Shows how many of the programs there were.

    Returns:
        The module; None where programs that end at single modules are right.
    """
    ends = ends_of(model, anchors)
    programs = over(range((len(ends) - 1).bit_length()))

    def is_wrong(anchor: Anchor) -> bool:
        next(programs, None)
        cut = ending_at(model, anchor)
        program = quantizer.lower(cut, as_example(samples[0]), progress=False, **lowering)
        expected = [tree_leaves(called(cut, sample)) for sample in samples]
        actual = [tree_leaves(output) for output in program.run_many(samples)]
        return distance_of(expected, actual).sqnr_db < least_db

    if not ends:
        return None
    found = first_wrong(ends[:-1], is_wrong)
    return found or (ends[-1] if _returns(model, ends[-1]) or is_wrong(ends[-1]) else None)


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
    (node,) = (node for node in model.graph.nodes if node.name == anchor.node)
    returned: list[Any] = tree_leaves(model.graph.output_node().args)
    return returned == [quantized_value(node) or node]


def ending_at(model: GraphModule, anchor: Anchor) -> GraphModule:
    """Cut a converted model off behind a module.

    Args:
        model: The converted model; not changed.
        anchor: Where it is to end.

    Returns:
        A model with the module's value, quantized and dequantized, as its only output.
    """
    cut = clone(model)
    node = next(node for node in cut.graph.nodes if node.name == anchor.node)
    cut.graph.output_node().args = ((quantized_value(node) or node,),)
    info = cut.graph._codegen.pytree_info
    cut.graph._codegen.pytree_info = info._replace(out_spec=tree_structure(0))
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut
