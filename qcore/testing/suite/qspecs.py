"""Reading the annotations of a graph and what they became, and comparing both with a scheme."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

import torch
from attrs import evolve, frozen
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qcore.annotation.layers import layer_of
from qcore.formats import NumberFormat
from qcore.graph import tensor_attribute
from qcore.schemes import PER_CHANNEL, QuantizationScheme
from qcore.testing.subject import Annotated, Subject

__all__ = [
    "annotation_snapshot",
    "check_converted",
    "check_qspecs",
    "input_qspecs",
    "integer_weights",
    "is_parameter",
    "output_qspec",
    "says_something",
]

_AS_THEY_ARE: Final = "use the qspecs of plan.config_for(node) as they are."


def _annotation(node: Node) -> Any:
    return node.meta.get(Q_ANNOTATION_KEY)


def input_qspecs(node: Node) -> dict[Node, Any]:
    """Return the qspecs of a node's input edges, without the empty ones."""
    annotation = _annotation(node)
    found = getattr(annotation, "input_qspec_map", None) or {}
    return {source: spec for source, spec in found.items() if spec is not None}


def output_qspec(node: Node) -> Any:
    """Return the qspec of a node's value, or ``None``."""
    return getattr(_annotation(node), "output_qspec", None)


def says_something(node: Node) -> bool:
    """Say whether a node has a qspec of its own."""
    return bool(input_qspecs(node)) or output_qspec(node) is not None


def annotation_snapshot(graph: GraphModule) -> dict[str, str]:
    """Return the annotations of a graph in a form that can be compared, by node."""
    return {
        node.name: repr(
            (
                sorted((source.name, repr(spec)) for source, spec in input_qspecs(node).items()),
                output_qspec(node),
            )
        )
        for node in graph.graph.nodes
        if says_something(node)
    }


def is_parameter(node: Node) -> bool:
    """Say whether a node reads a parameter or buffer, perhaps through views."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return bool(node.op == "get_attr")


@frozen
class _Stated:
    """A qspec, with where it stands."""

    node: Node
    where: str
    spec: Any
    source: Node | None = None

    @property
    def is_constant(self) -> bool:
        return is_parameter(self.source or self.node)

    @property
    def is_weight(self) -> bool:
        """Whether it is of the weight of a layer, known before the program runs."""
        layer = layer_of(self.node)
        if layer is None or self.source is None or not self.is_constant:
            return False
        return self.node.args[layer.weight] is self.source


def _stated(found: Annotated) -> Iterator[_Stated]:
    for node in found.graph.graph.nodes:
        for source, spec in input_qspecs(node).items():
            yield _Stated(node, f"the edge from {source.name}", spec, source)
        if output_qspec(node) is not None:
            yield _Stated(node, "its value", output_qspec(node))


def check_qspecs(subject: Subject, found: Annotated, scheme: QuantizationScheme) -> None:
    """Check that qspecs are those of the scheme: format, zero point, granularity, time, training.

    Args:
        subject: The backend.
        found: A graph annotated with the scheme.
        scheme: The scheme.
    """
    for stated in _stated(found):
        settled = scheme
        if scheme.granularity == "per_operator":
            # What the table says of this operator is in its decision.
            config = found.report[stated.node.name].config
            settled = evolve(scheme, granularity=QuantizationScheme.from_config(config).granularity)
        fault = _fault(stated, settled, subject)
        assert not fault, (
            f"{subject.name}: {scheme} was selected, and {stated.node.name} {fault} on "
            f"{stated.where}: {_AS_THEY_ARE}"
        )


def _fault(stated: _Stated, scheme: QuantizationScheme, subject: Subject) -> str:
    spec: Any = stated.spec
    if isinstance(spec, DerivedQuantizationSpec):
        return _symmetry(spec, True) if spec.dtype is torch.int32 else ""
    if not isinstance(spec, (QuantizationSpec, FixedQParamsQuantizationSpec)):
        return ""  # It shares what another one says.
    said = NumberFormat.of(spec)
    assert said is not None
    if stated.is_constant and said.bits == 32:
        return ""  # A bias.
    allowed = _formats(subject, stated, scheme)
    fault = _off_format(said, allowed)
    if fault or isinstance(spec, FixedQParamsQuantizationSpec):
        return fault or _fixed(spec, allowed)
    if not stated.is_constant and bool(spec.is_dynamic) != scheme.is_dynamic:
        return f"is {'dynamic' if spec.is_dynamic else 'static'}"
    if scheme.is_qat and not _trains(spec):
        return "is observed, without fake quantization,"
    return _granularity(stated, scheme) if stated.is_weight else ""


def _formats(
    subject: Subject, stated: _Stated, scheme: QuantizationScheme
) -> tuple[NumberFormat, ...]:
    if stated.is_weight:
        possible = [scheme.weight]
    else:
        # A table, or what is added, may be either.
        possible = [scheme.weight] if stated.is_constant else []
        possible += [*subject.requirements.changes_ranges.get(str(stated.node.target), ())]
        possible += [scheme.activation]
    return tuple(one for one in possible if one is not None)


def _off_format(said: NumberFormat, allowed: tuple[NumberFormat, ...]) -> str:
    """Say how a format differs from all that are allowed; the nearest one is named."""
    faults = []
    for wanted in allowed:
        if said.bits != wanted.bits:
            faults.append(f"has {said.bits} bits")
        elif said.dtype != wanted.dtype:
            faults.append(f"is {said.dtype}, not {wanted.dtype},")
        elif (said.lowest, said.highest) != (wanted.lowest, wanted.highest):
            faults.append(
                f"has levels from {said.lowest} to {said.highest}, not from {wanted.lowest} to "
                f"{wanted.highest},"
            )
        elif said.symmetric != wanted.symmetric and wanted.symmetric:
            faults.append("is asymmetric, not symmetric,")
        elif said.symmetric != wanted.symmetric:
            faults.append("is symmetric, not asymmetric,")
        else:
            return ""
    return faults[-1] if faults else "is quantized, which the scheme leaves in float,"


def _fixed(spec: Any, allowed: tuple[NumberFormat, ...]) -> str:
    symmetric = all(wanted.symmetric for wanted in allowed)
    return f"has the zero point {spec.zero_point}" if symmetric and spec.zero_point else ""


def _symmetry(spec: Any, wanted: bool) -> str:
    symmetric = spec.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
    return "" if symmetric or not wanted else "has an int32 bias with a zero point"


def _granularity(stated: _Stated, scheme: QuantizationScheme) -> str:
    layer = layer_of(stated.node)
    assert layer is not None
    per_channel = stated.spec.qscheme in PER_CHANNEL
    if per_channel != (scheme.granularity == "per_channel"):
        return f"has scales {'per channel' if per_channel else 'per tensor'}"
    axis = layer.weight_axis(stated.node)
    if per_channel and stated.spec.ch_axis != axis:
        return f"has a scale for each index of axis {stated.spec.ch_axis}, not of axis {axis},"
    return ""


def _trains(spec: QuantizationSpec) -> bool:
    made = spec.observer_or_fake_quant_ctr
    cls: Any = getattr(getattr(made, "p", None), "func", made)
    return inspect.isclass(cls) and issubclass(cls, FakeQuantizeBase)


def check_converted(subject: Subject, model: GraphModule, scheme: QuantizationScheme) -> None:
    """Check that what ``convert_pt2e`` made of a model has the numbers of the scheme.

    Args:
        subject: The backend.
        model: The converted model.
        scheme: What all of it was quantized with.
    """
    for node in model.graph.nodes:
        if "dequantize_per" not in str(node.target):
            continue
        readers = ", ".join(user.name for user in node.users)
        where = f"{subject.name}: {scheme} was selected, and {readers} reads"
        is_weight = any(
            (layer := layer_of(user)) is not None and user.args[layer.weight] is node
            for user in node.users
        )
        wanted = scheme.weight if is_weight else scheme.activation
        if wanted is None or (not is_weight and _reads_constant(node)):
            continue
        rule, scales = wanted.scales, _qparams(model, node, 1)
        if rule is not None and not subject.requirements.changes_ranges:
            off = scales[rule(scales) != scales]
            assert not off.numel(), (
                f"{where} {'a weight' if is_weight else 'values'} with the scale {float(off[0])}: "
                f"the scheme's are {wanted.words}. {_AS_THEY_ARE.capitalize()}"
            )
        zeros = _qparams(model, node, 2)
        assert not wanted.symmetric or not zeros.any(), (
            f"{where} {'a weight' if is_weight else 'values'} with the zero point "
            f"{int(zeros[zeros != 0][0])}: {wanted.label!r} is symmetric. Let observers return 0."
        )


def _reads_constant(node: Node) -> bool:
    return is_parameter(node.args[0]) if isinstance(node.args[0], Node) else False


def _qparams(model: GraphModule, node: Node, place: int) -> torch.Tensor:
    value: Any = node.args[place]
    if not isinstance(value, Node):
        return torch.tensor([value])
    if value.op != "get_attr":
        return torch.zeros(1)  # Of dynamic ranges, known at run time.
    return tensor_attribute(model, value).flatten()


def integer_weights(model: GraphModule) -> Iterator[tuple[str, int, int]]:
    """Walk the parameters of a converted model that are stored in 8 bits or fewer.

    Args:
        model: What ``convert_pt2e`` returned.

    Yields:
        The operator that reads it, the largest level in use, and the largest level that there is.
    """
    for node in model.graph.nodes:
        source = node.args[0] if node.args else None
        if "dequantize_per" not in str(node.target) or not isinstance(source, Node):
            continue
        limit = node.args[5 if "per_channel" in str(node.target) else 4]
        if source.op == "get_attr" and limit <= 127:
            levels = tensor_attribute(model, source)
            yield ", ".join(user.name for user in node.users), int(levels.int().abs().max()), limit
