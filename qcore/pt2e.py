"""torchao's PT2E flow, extended to the bodies of conditionals and loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import define, evolve, field
from torch.fx import Graph, GraphModule

from qcore.algorithms import Algorithm
from qcore.annotation.origins import remember_captured
from qcore.compat.torch import TRACING, counted_names
from qcore.compat.torchao import (
    Quantizer,
    convert_pt2e,
    exact_folds,
    fusions_of_present_convolutions,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from qcore.control_flow import (
    direct_bodies,
    raise_constants,
    replace_body,
    sink_all_parameters,
)
from qcore.errors import CalibrationWarning, warn
from qcore.graph import clone, control_flow_bodies, is_observer
from qcore.quiet import spared_gc
from qcore.report import AnnotationReport, Decision, read_decisions, write_decisions

__all__ = ["Annotator", "Body", "PreparedModel"]


@runtime_checkable
class Annotator(Protocol):
    """What the flow drives: rewrites a captured graph, decides about its nodes, judges the rest."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring a captured graph into the form that is annotated."""

    def annotated(self, model: GraphModule) -> AnnotationReport:
        """Annotate a graph; leave a decision for every compute node in its ``meta``."""

    def validate(self, model: GraphModule) -> None:
        """Raise if what stayed in float is not allowed."""


@define(eq=False)
class Body:
    """A conditional or loop body of a prepared model.

    Attributes:
        path: Its name in the model.
        operator: The operator that runs it, such as ``cond``.
        in_float: The body as it was.
        calls: How often calibration ran it.
    """

    path: str
    operator: str
    in_float: GraphModule
    calls: int = 0

    def count_call(self, *_: Any) -> None:
        """Count one run; a forward hook."""
        self.calls += 1


@define
class PreparedModel:
    """A model with observers in it and in every body of its control flow."""

    model: GraphModule
    bodies: list[Body] = field(factory=list)

    @classmethod
    def prepare(
        cls,
        model: GraphModule,
        quantizer: Annotator,
        is_qat: bool,
        algorithms: Sequence[Algorithm] = (),
    ) -> PreparedModel:
        """Insert observers, or fake quantization, into a captured model, which is changed in place.

        ``quantizer`` annotates the model and each body; then ``algorithms`` may change them.
        """
        remember_captured(model)
        prepare = prepare_qat_pt2e if is_qat else prepare_pt2e
        walk = _Walk(quantizer, algorithms)
        quick = fusions_of_present_convolutions()
        with TRACING, counted_names(), exact_folds(), quick, spared_gc():
            prepared = prepare(model, walk)
        originals = walk.bodies or {}
        result = cls(prepared)
        decisions = [*result.report().decisions]
        for name, call, body in direct_bodies(prepared):
            # prepare_pt2e has done the bodies of while_loop itself; it does not do their inside.
            done = _has_observers(body)
            inner = cls(body) if done else cls.prepare(body, quantizer, is_qat, algorithms)
            replace_body(prepared, name, inner.model)
            kind = getattr(call.target, "__name__", str(call.target))
            record = Body(name, kind, originals[name])
            inner.model.register_forward_pre_hook(record.count_call)
            result.bodies.append(record)
            decisions += (_located(name, d) for d in inner.report().decisions)
            for nested in inner.bodies:
                nested.path = f"{name}.{nested.path}"
                result.bodies.append(nested)
        result._decide(decisions)
        return result

    def report(self) -> AnnotationReport:
        """Return the decisions for the model and, with their path, for its bodies."""
        report = read_decisions(self.model)
        assert report is not None, "the annotator left no decisions in the model's meta"
        return report

    def _decide(self, decisions: Iterable[Decision]) -> None:
        write_decisions(self.model, evolve(self.report(), decisions=tuple(decisions)))

    def warn(self, found: Iterable[str]) -> None:
        """Warn of what calibration shows, and put it into the report."""
        for message in found:
            warn(message, CalibrationWarning)
            report = self.report()
            write_decisions(self.model, evolve(report, warnings=(*report.warnings, message)))

    def leave_unreached_in_float(self) -> None:
        """Put the bodies that no calibration sample reached back as they were, and warn."""
        missed = [body for body in self.bodies if not body.calls]
        for body in missed:
            if any(body.path.startswith(f"{outer.path}.") for outer in missed):
                continue  # It goes back inside the other.
            warn(
                f"No calibration sample reached {body.path!r}, a body of {body.operator}: it "
                "stays in float. Add a sample that takes this branch."
            )
            replace_body(self.model, body.path, body.in_float)
            inside = (f"{body.path}/", f"{body.path}.")
            self._decide(
                _unreached(d) if d.is_quantized and d.node.startswith(inside) else d
                for d in self.report().decisions
            )

    def graphs(self) -> tuple[GraphModule, ...]:
        """Return the prepared graph and those of its bodies that have observers."""
        bodies = (body for _, _, body in control_flow_bodies(self.model))
        return (self.model, *(body for body in bodies if _has_observers(body)))

    def convert(self, *, fold_quantize: bool = True) -> GraphModule:
        """Replace the observers by quantize and dequantize operators.

        With ``fold_quantize`` weights are stored as integers instead of being quantized at run
        time.
        """
        converted = _converted(self.model, fold_quantize)
        raise_constants(converted)
        _stop_gradients(converted)
        return converted


class _Walk(Quantizer):  # type: ignore[misc]
    """torchao's form of an annotator.

    Sinks parameters into the bodies of a transformed graph, and keeps these as they then are. That
    nothing is quantized is judged later, for a graph and its bodies together.
    """

    def __init__(self, annotator: Annotator, algorithms: Sequence[Algorithm] = ()) -> None:
        super().__init__()
        self._annotator = annotator
        self._algorithms = algorithms
        self.bodies: dict[str, GraphModule] | None = None

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        return self._annotator.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        if self.bodies is None:
            sink_all_parameters(model)
            self.bodies = {name: clone(body) for name, _, body in direct_bodies(model)}
        self._annotator.annotated(model)
        return model

    def validate(self, model: GraphModule) -> None:
        self._annotator.validate(model)
        for algorithm in self._algorithms:
            algorithm.before_observing(model)


def _located(body: str, decision: Decision) -> Decision:
    """Name a node as seen from around its body: ``outer.inner/node``."""
    return evolve(decision, node=f"{body}{'.' if '/' in decision.node else '/'}{decision.node}")


def _unreached(decision: Decision) -> Decision:
    return Decision(
        decision.node,
        decision.operator,
        decision.module,
        reason="no calibration sample reached it",
        advice="Add a sample that takes this branch.",
    )


def _converted(model: GraphModule, fold_quantize: bool) -> GraphModule:
    bodies: dict[str, GraphModule] = {}
    for name, call, body in direct_bodies(model):
        body._forward_pre_hooks.clear()
        observed = _has_observers(body)
        is_loop = call.target is torch.ops.higher_order.while_loop
        if observed and is_loop and call.args[1].target == name:
            continue  # convert_pt2e does the bodies of while_loop itself.
        bodies[name] = _converted(body, fold_quantize) if observed else body
        # Passes over the parent delete the submodules of bodies; they get a stand-in instead.
        replace_body(model, name, _stand_in(model))
    with TRACING, fusions_of_present_convolutions():
        converted = convert_pt2e(model, fold_quantize=fold_quantize)
    for name, body in bodies.items():
        replace_body(converted, name, body)
    return converted


def _stand_in(model: GraphModule) -> GraphModule:
    """Make an empty graph that convert_pt2e takes for a prepared one, as it does its parent."""
    graph = Graph()
    graph.output(())
    empty = GraphModule({}, graph)
    empty.meta.update(model.meta)
    return empty


def _stop_gradients(model: GraphModule) -> None:
    """Detach the parameters: cond traces its branches backward for what requires a gradient."""
    detached: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            key = id(parameter)
            if key not in detached:
                detached[key] = torch.nn.Parameter(parameter.detach(), requires_grad=False)
            setattr(module, name, detached[key])


def _has_observers(model: GraphModule) -> bool:
    return any(map(is_observer, model.graph.nodes))
