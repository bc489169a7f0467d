"""Finding the module that a runtime computes wrongly, with programs that end in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_structure

from qcore.graph import clone
from qcore_analysis.measures import distance_of
from qcore_analysis.samples import as_example, called
from qcore_analysis.tracing import Anchor, quantized_value

if TYPE_CHECKING:
    from qcore import Quantizer

__all__ = ["ending_at", "first_wrong", "runs_wrongly"]


def first_wrong(anchors: Sequence[Anchor], is_wrong: Callable[[Anchor], bool]) -> Anchor | None:
    """Return the first anchor whose value is wrong, where all behind it are wrong, too.

    Args:
        anchors: In the order of the graph.
        is_wrong: Says whether a program that ends at an anchor gives a wrong value; asked at most
            ``ceil(log2(len(anchors))) + 1`` times.

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


def ending_at(model: GraphModule, anchor: Anchor) -> GraphModule | None:
    """Cut a converted model off behind a module.

    Args:
        model: The converted model; not changed.
        anchor: Where it is to end.

    Returns:
        A model with the module's value, quantized and dequantized, as its only output; None where
        the converted model has no such node.
    """
    cut = clone(model)
    nodes = {node.name: node for node in cut.graph.nodes}
    node = nodes.get(anchor.node)
    if node is None:
        return None
    output = next(iter(reversed(cut.graph.nodes)))
    output.args = ((quantized_value(node) or node,),)
    info = cut.graph._codegen.pytree_info
    cut.graph._codegen.pytree_info = info._replace(out_spec=tree_structure(0))
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut


def runs_wrongly(
    model: GraphModule,
    quantizer: Quantizer,
    samples: Sequence[Any],
    least_db: float,
    lowering: Mapping[str, Any],
) -> Callable[[Anchor], bool]:
    """Return what tells whether a program that ends at an anchor differs from the converted model.

    Args:
        model: The converted model.
        quantizer: Lowers it.
        samples: Inputs to compare with.
        least_db: The SQNR below which they differ.
        lowering: Options for ``quantizer.lower``.
    """

    def is_wrong(anchor: Anchor) -> bool:
        cut = ending_at(model, anchor)
        if cut is None:
            return False
        program = quantizer.lower(cut, as_example(samples[0]), **lowering)
        expected = [tree_leaves(called(cut, sample)) for sample in samples]
        actual = [tree_leaves(output) for output in program.run_many(samples)]
        return distance_of(expected, actual).sqnr_db < least_db

    return is_wrong
