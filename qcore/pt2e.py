"""torchao's PT2E flow, extended to the bodies of conditionals and loops."""

from __future__ import annotations

import warnings
from typing import Any, Final

import torch
from attrs import define, evolve, field
from torch.fx import Graph, GraphModule
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from torchao.quantization.pt2e.quantizer import Quantizer

from qcore.control_flow import direct_bodies, raise_constants, replace_body, sink_parameters
from qcore.errors import QcoreWarning
from qcore.graph import clone, control_flow_bodies, is_observer
from qcore.report import AnnotationReport

__all__ = ["REPORT", "Body", "PreparedModel"]

#: Key in ``GraphModule.meta`` under which a quantizer leaves its decisions.
REPORT: Final = "qcore_report"


@define(eq=False)
class Body:
    """A conditional or loop body of a prepared model.

    Attributes:
        path: Its name in the model.
        operator: The operator that runs it, such as ``cond``.
        in_float: The body as it was.
        report: The decisions for it.
        calls: How often calibration ran it.
    """

    path: str
    operator: str
    in_float: GraphModule
    report: AnnotationReport
    calls: int = 0

    def count_call(self, *_: Any) -> None:
        """Count one run; a forward hook."""
        self.calls += 1


@define
class PreparedModel:
    """A model with observers in it and in every body of its control flow.

    Attributes:
        model: The prepared graph module; run the calibration samples through it.
        bodies: Its bodies.
    """

    model: GraphModule
    bodies: list[Body] = field(factory=list)

    @classmethod
    def prepare(cls, model: GraphModule, quantizer: Quantizer, is_qat: bool) -> PreparedModel:
        """Insert observers.

        Args:
            model: A captured model; changed in place.
            quantizer: Annotates the model and each body.
            is_qat: Insert fake quantization instead.

        Returns:
            The prepared model.
        """
        prepare = prepare_qat_pt2e if is_qat else prepare_pt2e
        for _, call, body in direct_bodies(model):
            sink_parameters(model, call, body)
        originals = {name: clone(body) for name, _, body in direct_bodies(model)}
        prepared = prepare(model, quantizer)
        result = cls(prepared)
        for name, call, body in direct_bodies(prepared):
            # prepare_pt2e has done the bodies of while_loop itself; it does not do their inside.
            done = _has_observers(body)
            inner = cls(body) if done else cls.prepare(body, quantizer, is_qat)
            replace_body(prepared, name, inner.model)
            kind = getattr(call.target, "__name__", str(call.target))
            record = Body(name, kind, originals[name], inner.model.meta[REPORT])
            inner.model.register_forward_pre_hook(record.count_call)
            result.bodies.append(record)
            for nested in inner.bodies:
                nested.path = f"{name}.{nested.path}"
                result.bodies.append(nested)
        return result

    def report(self) -> AnnotationReport:
        """Return the decisions for the model and, with their path, for its bodies."""
        report: AnnotationReport = self.model.meta[REPORT]
        return report.merged(_located(body) for body in self.bodies)

    def leave_unreached_in_float(self) -> None:
        """Put the bodies that no calibration sample reached back as they were, and warn."""
        for body in self._unreached():
            warnings.warn(
                f"No calibration sample reached {body.path!r}, a body of {body.operator}: it "
                "stays in float. Add a sample that takes this branch.",
                QcoreWarning,
                stacklevel=5,
            )
            replace_body(self.model, body.path, body.in_float)
            for inside in self.bodies:
                if inside is body or inside.path.startswith(f"{body.path}."):
                    inside.report = _all_float(inside.report)

    def _unreached(self) -> list[Body]:
        """Return the bodies that no calibration sample reached, outermost first."""
        missed = [body for body in self.bodies if not body.calls]
        return [
            body
            for body in missed
            if not any(body.path.startswith(f"{outer.path}.") for outer in missed)
        ]

    def graphs(self) -> tuple[GraphModule, ...]:
        """Return the prepared graph and those of its bodies that have observers."""
        bodies = (body for _, _, body in control_flow_bodies(self.model))
        return (self.model, *(body for body in bodies if _has_observers(body)))

    def convert(self) -> GraphModule:
        """Replace the observers by quantize and dequantize operators.

        Returns:
            The converted model.
        """
        converted = _converted(self.model)
        raise_constants(converted)
        _stop_gradients(converted)
        return converted


def _located(body: Body) -> AnnotationReport:
    decisions = (evolve(d, node=f"{body.path}/{d.node}") for d in body.report.decisions)
    return evolve(body.report, decisions=tuple(decisions))


def _all_float(report: AnnotationReport) -> AnnotationReport:
    reason, advice = "no calibration sample reached it", "Add a sample that takes this branch."
    decisions = (
        evolve(d, scheme=None, pattern="", reason=reason, advice=advice) if d.is_quantized else d
        for d in report.decisions
    )
    return evolve(report, decisions=tuple(decisions))


def _converted(model: GraphModule) -> GraphModule:
    bodies: dict[str, GraphModule] = {}
    for name, call, body in direct_bodies(model):
        body._forward_pre_hooks.clear()
        if getattr(call.target, "__name__", "") == "while_loop" and call.args[1].target == name:
            continue  # convert_pt2e does the bodies of while_loop itself.
        bodies[name] = _converted(body) if _has_observers(body) else body
        # Passes over the parent delete the submodules of bodies; they get a stand-in instead.
        replace_body(model, name, _stand_in())
    converted = convert_pt2e(model)
    for name, body in bodies.items():
        replace_body(converted, name, body)
    return converted


def _stand_in() -> GraphModule:
    graph = Graph()
    graph.output(())
    return GraphModule({}, graph)


def _stop_gradients(model: GraphModule) -> None:
    """Detach the parameters, which the user's model still owns.

    cond traces its branches for the backward pass when an operand requires a gradient, and that
    fails on quantized operators.
    """
    detached: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            key = id(parameter)
            if key not in detached:
                detached[key] = torch.nn.Parameter(parameter.detach(), requires_grad=False)
            setattr(module, name, detached[key])


def _has_observers(model: GraphModule) -> bool:
    return any(map(is_observer, model.graph.nodes))
