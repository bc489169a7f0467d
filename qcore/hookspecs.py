"""The hooks between the core and a backend.

A backend is an attrs class whose methods carry ``@qcore.hookimpl``. An entry point in the group
``qcore.backends`` names the class; the core builds one instance per quantizer, from the options
passed to ``qcore.get_quantizer``. pluggy passes arguments by name: an implementation may leave out
parameters that it does not use, and must not give any of them a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from qcore.lowering import LoweredProgram
    from qcore.plan import QuantizationPlan
    from qcore.report import AnnotationReport, Diagnostic
    from qcore.schemes import QuantizationScheme

__all__ = [
    "API_VERSION",
    "PROJECT",
    "annotate",
    "hookimpl",
    "hookspec",
    "lower",
    "supported_schemes",
    "transform_for_annotation",
    "validate_partial",
]

#: Version of these hooks. A backend states in ``api_version`` which one it was written for.
API_VERSION: Final = 2

PROJECT: Final = "qcore"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks the methods of a backend that implement hooks.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def supported_schemes() -> Sequence[QuantizationScheme]:  # type: ignore[empty-body]
    """Say which schemes the backend executes.

    Returns:
        The schemes, the preferred ones first: a name that leaves something open, such as
        ``"8a8w"``, means the first that fits. A ``qcore.schemes.LayerScheme`` is what
        ``qcore.quantize_`` may do to a model for the backend, an ``IoScheme`` what ``set_io``
        alone takes, the others what its quantizer may do. ``None`` is not allowed.
    """


@hookspec(firstresult=True)
def transform_for_annotation(model: GraphModule, plan: QuantizationPlan) -> GraphModule:
    """Rewrite the captured model into the form that the backend annotates.

    Args:
        model: The captured model; may be changed in place.
        plan: What the user selected; rewrite only what ``plan.config_for(node)`` quantizes.

    Returns:
        The rewritten model, with the same outputs in float. ``None`` means: as it was.
    """


@hookspec(firstresult=True)
def annotate(model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:  # type: ignore[empty-body]
    """Write a ``QuantizationAnnotation`` into ``node.meta`` of every node to quantize.

    Args:
        model: The model as ``transform_for_annotation`` left it.
        plan: Selection has been resolved: ``plan.config_for(node)`` is the configuration to use,
            or ``None`` where the node stays in float.

    Returns:
        One decision for every compute node. ``None`` is not allowed.
    """


@hookspec
def validate_partial(  # type: ignore[empty-body]
    model: GraphModule, plan: QuantizationPlan, report: AnnotationReport
) -> Sequence[Diagnostic]:
    """Judge whether what stayed in float is legal on the backend.

    Args:
        model: The annotated model.
        plan: What the user selected.
        report: The decisions that ``annotate`` returned.

    Returns:
        Diagnostics. The core raises one PartialQuantizationError for all that are errors.
        ``None`` or an empty sequence means: legal.
    """


@hookspec(firstresult=True)
def lower(program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:  # type: ignore[empty-body]
    """Turn a converted model into a program for the device.

    Args:
        program: The converted model, exported; inputs are contiguous.
        options: What the user passed to ``Quantizer.lower`` beside model and inputs.

    Returns:
        The program. ``None`` is not allowed.
    """
