"""How far a quantized model is from float on samples of its calibration, and where that happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from attrs import evolve, frozen
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from qcore.calibration import Kept
from qcore.graph import ORIGINAL_NAME, is_compute_node, module_path, operator_name
from qcore.lowering.rounding import sqnr_db
from qcore.report import AnnotationReport

__all__ = ["Far", "far_from_float", "remedies"]

#: Noise is then a third of the signal: classifiers fail.
_FAR_DB: Final = 10.0


@frozen
class Far:
    """What makes a model far from float.

    Attributes:
        told: How far, where it happens and why, as sentences.
        nodes: What would have to stay in float; a placeholder alone where it is an input.
        is_of_bits: Whether activations with more bits would do, too.
    """

    told: str
    nodes: tuple[Node, ...] = ()
    is_of_bits: bool = False


def far_from_float(converted: GraphModule, kept: Sequence[Kept]) -> Far | None:
    """Say which output of a converted model is far from float, and where that happens.

    Args:
        converted: The converted model.
        kept: Samples, with the outputs of the float model.

    Returns:
        What is far, and why; ``None`` where every output is near, or the model is not the same
        function each time.
    """
    if not kept or any(map(_is_stateful, converted.graph.nodes)):
        return None
    with torch.no_grad():
        outputs = [tree_leaves(converted(*k.sample.args, **k.sample.kwargs)) for k in kept]
        distances = [
            _distance(_joined(exact), _joined(rounded))
            for exact, rounded in zip(
                zip(*(k.outputs for k in kept), strict=True),
                zip(*outputs, strict=True),
                strict=True,
            )
        ]
        far = min(range(len(distances)), key=distances.__getitem__, default=None)
        if far is None or distances[far] >= _FAR_DB:
            return None
        worst = min(
            range(len(kept)), key=lambda i: _distance(kept[i].outputs[far], outputs[i][far])
        )
        results = tree_leaves(converted.graph.output_node().args[0])
        found = _Search(converted, kept[worst].sample.flat()).cause(results[far])
    told = (
        "The quantized model is far from float on its calibration samples: output "
        f"{far} has {distances[far]:.1f} dB, where 30 dB are usual."
    )
    return evolve(found, told=f"{told} {found.told}")


def remedies(
    quantizer: Any, far: Far, report: AnnotationReport, accepts: Callable[[str], bool]
) -> str:
    """Say what may bring a model nearer to float, of what its backend permits.

    Args:
        quantizer: What quantized the model; one that is not qcore's own offers less.
        far: What is far, and why.
        report: What became of the model.
        accepts: Says whether the model can be quantized with a scheme, by its name.

    Returns:
        A sentence; nothing where nothing is on offer.
    """
    ways = []
    names = dict.fromkeys(_name(node) for node in far.nodes)
    is_partial = getattr(getattr(quantizer, "backend", None), "partial_quantization", True)
    if any(node.op == "placeholder" for node in far.nodes):
        ways.append("scale that input before the model")
    elif names and is_partial and any(d.node not in names for d in report.quantized):
        rules = ", ".join(f"set_node_name({name!r}, None)" for name in names)
        ways.append(f"leave in float what makes and what reads these values: {rules}")
    elif names:
        ways.append("compute that part outside of the model")
    offered = getattr(quantizer, "supported_schemes", ())
    wide = {s.name: None for s in offered if (s.activation_bits or 0) > 8 and not s.is_qat}
    if far.is_of_bits:
        ways += [f"use set_global({name!r})" for name in wide if accepts(name)][:1]
    return f"Try to {', or '.join(ways)}." if ways else ""


def _joined(values: Sequence[Any]) -> Any:
    """Return an output for all samples as one tensor; the first where it is no tensor."""
    tensors = all(isinstance(value, torch.Tensor) for value in values)
    return torch.cat([value.reshape(-1) for value in values]) if tensors else values[0]


def _distance(reference: Any, output: Any) -> float:
    """Return the distance in dB; infinite for what is not of floating point, or is zero."""
    both = (reference, output)
    if not all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in both):
        return math.inf
    known = reference.isfinite()
    if reference.shape != output.shape or not reference[known].any():
        return math.inf
    distance = sqnr_db(reference[known], output[known])
    return -math.inf if math.isnan(distance) else distance


def _is_stateful(node: Node) -> bool:
    """Say whether a node writes to a buffer, or draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    writes = node.target._schema.is_mutable and node.args and isinstance(node.args[0], Node)
    is_random = torch.Tag.nondeterministic_seeded in node.target.tags
    return is_random or bool(writes and node.args[0].op == "get_attr")


class _Values(Interpreter):  # type: ignore[misc]
    """Runs a converted model and keeps every value, with activations rounded or as they are."""

    def __init__(self, model: GraphModule, rounds: bool, inputs: Sequence[Any]) -> None:
        super().__init__(model)
        self._rounds = rounds
        self.of: dict[Node, Any] = {}
        self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        first = self.map_nodes_to_values(n.args[0], n) if n.args and _is_step(n) else None
        is_float = isinstance(first, torch.Tensor) and first.is_floating_point()
        self.of[n] = first if is_float and not self._rounds else super().run_node(n)
        return self.of[n]


def _is_step(node: Node) -> bool:
    return node.op == "call_function" and "quantize_" in str(node.target)


class _Search:
    """The way back from an output to where its error is made."""

    def __init__(self, model: GraphModule, inputs: Sequence[Any]) -> None:
        self._exact = _Values(model, False, inputs).of
        self._rounded = _Values(model, True, inputs).of

    def cause(self, node: Node) -> Far:
        """Return what makes the error of a value."""
        while far := [s for s in self._sources(node) if self._distance(s) < _FAR_DB]:
            node = min(far, key=self._distance)
        if _is_step(node):
            (source,) = self._sources(node)
            told = f"It happens at {_named(source)}: {self._range(source, node)}."
            readers = (
                u for step in source.users for dequantize in step.users for u in dequantize.users
            )
            return Far(told, (source, *filter(is_compute_node, readers)), True)
        if node.op != "call_function" or self._distance(node) >= _FAR_DB:
            return Far(
                "Its weights are rounded too coarsely: use a scheme with more bits for them."
            )
        makers: tuple[Node, ...] = tuple(
            maker
            for step in self._sources(node)
            for maker in (self._sources(step) if _is_step(step) else (step,))
        )
        is_finite = bool(self._rounded[node].isfinite().all())
        before = min(map(self._distance, self._sources(node)), default=math.inf)
        told = (
            f"its inputs are {before:.1f} dB from float and its result {self._distance(node):.1f} "
            "dB, so that it magnifies what rounding them left, as a division by small values does"
            if is_finite
            else "its result is not finite where an input is rounded to 0, or out of its domain"
        )
        made = tuple(maker for maker in makers if is_compute_node(maker))
        return Far(f"It happens at {_named(node)}: {told}.", (*made, node), is_finite)

    def _sources(self, node: Node) -> Iterator[Node]:
        """Yield the values of floating point that a node is computed from."""
        for source in node.all_input_nodes:
            value = self._rounded[source]
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                yield source
            elif _is_step(source):
                yield from self._sources(source)

    def _distance(self, node: Node) -> float:
        return _distance(self._exact[node], self._rounded[node])

    def _range(self, node: Node, step: Node) -> str:
        sizes = self._exact[node].abs().double()
        quantize = step.all_input_nodes[0]
        width = quantize.args[1] if len(quantize.args) > 1 else None
        wide = f", where a step of its range is {width:.3g}" if isinstance(width, float) else ""
        return (
            f"its values reach {float(sizes.max()):.3g} and half of them stay below "
            f"{float(sizes.median()):.3g}{wide}"
        )


def _named(node: Node) -> str:
    if node.op == "placeholder":
        return f"the input {str(node.target)!r}"
    where = f" in {module_path(node)!r}" if module_path(node) else ""
    return f"{_name(node)!r} ({operator_name(node)}{where})"


def _name(node: Node) -> str:
    return str(node.meta.get(ORIGINAL_NAME, node.name))
