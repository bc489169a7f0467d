"""torchao's PT2E flow, extended to the bodies of conditionals and loops."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from typing import Any

from attrs import define, field
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from torchao.quantization.pt2e.quantizer import Quantizer

from qcore.capture import sink_parameters
from qcore.errors import QcoreWarning
from qcore.graph import control_flow_bodies

__all__ = ["Body", "PreparedModel"]


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
        for _, call, body in _direct_bodies(model):
            if getattr(call.target, "__name__", "") == "cond":
                sink_parameters(model, call, body)
        originals = {name: _copy(body) for name, _, body in _direct_bodies(model)}
        prepared = prepare(model, quantizer)
        result = cls(prepared)
        for name, call, body in list(_direct_bodies(prepared)):
            # prepare_pt2e has done the bodies of while_loop itself; it does not do their inside.
            done = _has_observers(body)
            inner = cls(body) if done else cls.prepare(body, quantizer, is_qat)
            _replace(prepared, name, inner.model)
            kind = getattr(call.target, "__name__", str(call.target))
            record = Body(name, kind, originals[name])
            inner.model.register_forward_pre_hook(record.count_call)
            result.bodies.append(record)
            for nested in inner.bodies:
                nested.path = f"{name}.{nested.path}"
                result.bodies.append(nested)
        return result

    def unreached(self) -> list[Body]:
        """Return the bodies that no calibration sample reached, outermost first."""
        missed = [body for body in self.bodies if not body.calls]
        return [
            body
            for body in missed
            if not any(body.path.startswith(f"{outer.path}.") for outer in missed)
        ]

    def convert(self) -> GraphModule:
        """Replace the observers by quantize and dequantize operators.

        A body that no sample reached goes back to float, with a warning that names it: its
        observers have seen nothing.

        Returns:
            The converted model.
        """
        for body in self.unreached():
            warnings.warn(
                f"No calibration sample reached {body.path!r}, a body of {body.operator}: it "
                "stays in float. Add a sample that takes this branch.",
                QcoreWarning,
                stacklevel=4,
            )
            _replace(self.model, body.path, body.in_float)
        return _converted(self.model)


def _converted(model: GraphModule) -> GraphModule:
    converted_bodies: dict[str, GraphModule] = {}
    for name, call, body in list(_direct_bodies(model)):
        is_torchaos = getattr(call.target, "__name__", "") == "while_loop" and (
            call.args[1].target == name
        )
        body._forward_pre_hooks.clear()
        if not is_torchaos and _has_observers(body):
            converted_bodies[name] = _converted(body)
    converted = convert_pt2e(model)
    for name, body in converted_bodies.items():
        _replace(converted, name, body)
    return converted


def _direct_bodies(model: GraphModule) -> Iterator[tuple[str, Any, GraphModule]]:
    for path, call, body in control_flow_bodies(model):
        if "." not in path:
            yield path, call, body


def _has_observers(model: GraphModule) -> bool:
    return any(
        node.op == "call_module" and str(node.target).startswith("activation_post_process")
        for node in model.graph.nodes
    )


def _replace(model: GraphModule, path: str, body: GraphModule) -> None:
    parent, _, name = path.rpartition(".")
    owner = operator.attrgetter(parent)(model) if parent else model
    setattr(owner, name, body)


def _copy(model: GraphModule) -> GraphModule:
    import copy

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
