"""Defects in the numbers of qspecs: bits, levels, zero points, granularity, time, training."""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import qcore
from qcore.annotation import annotate_graph
from qcore.formats import NumberFormat, power_of_two
from qcore.plan import QuantizationPlan
from qcore.schemes import QuantizationScheme
from qcore_portable import SCHEMES, TABLE, PortableBackend

from .declared import DYNAMIC, with_schemes
from .defects import calls, caught_by

QSPECS = calls("qspecs_are_those_of_the_configuration", "linear")


def changed_weight_qspec(**changes: Any) -> Any:
    def annotate(self: Any, model: Any, plan: Any) -> Any:
        report = annotate_graph(model, plan, TABLE, "portable")
        for node in model.graph.nodes:
            annotation: QuantizationAnnotation | None = node.meta.get(Q_ANNOTATION_KEY)
            for source, spec in (annotation.input_qspec_map if annotation else {}).items():
                if source.op == "get_attr" and spec is not None:
                    annotation.input_qspec_map[source] = type(spec)(**{**vars(spec), **changes})
        return report

    return qcore.hookimpl(annotate)


@caught_by(
    calls("qspecs_are_those_of_the_configuration", "linear"),
    "8a8w static per-channel was selected, and linear has 7 bits on the edge from",
)
class WastesHalfTheRangeOfWeights(PortableBackend):
    annotate = changed_weight_qspec(quant_min=-63, quant_max=63)


def _coarse() -> Any:
    class Coarse(PerChannelMinMaxObserver):  # type: ignore[misc]
        def calculate_qparams(self) -> Any:
            scale, zero_point = super().calculate_qparams()
            return scale * 3, zero_point

    return Coarse


@caught_by(
    calls("declared_scheme_is_executed", SCHEMES[0]),
    r"the weight of linear in linear uses levels up to 4\d of 127: its scale is 3 times",
)
class GivesWeightsAWrongScale(PortableBackend):
    annotate = changed_weight_qspec(observer_or_fake_quant_ctr=_coarse())


def _with_zero_point() -> Any:
    class Shifted(PerChannelMinMaxObserver):  # type: ignore[misc]
        def calculate_qparams(self) -> Any:
            scale, zero_point = super().calculate_qparams()
            return scale, zero_point + 3

    return Shifted


@caught_by(
    calls("declared_scheme_is_executed", SCHEMES[0]), "linear reads a weight with the zero point 3"
)
class GivesWeightsAZeroPoint(PortableBackend):
    annotate = changed_weight_qspec(observer_or_fake_quant_ctr=_with_zero_point())


@caught_by(QSPECS, "linear has a scale for each index of axis 1, not of axis 0")
class ScalesAlongTheInputs(PortableBackend):
    annotate = changed_weight_qspec(ch_axis=1)


@caught_by(QSPECS, "linear is asymmetric, not symmetric, on the edge from")
class MakesWeightsAsymmetric(PortableBackend):
    annotate = changed_weight_qspec(qscheme=torch.per_channel_affine)


@caught_by(QSPECS, "linear has levels from -128 to 127, not from -127 to 127, on the edge from")
class GivesWeightsALevelMore(PortableBackend):
    annotate = changed_weight_qspec(quant_min=-128)


@caught_by(QSPECS, "linear has 16 bits on the edge from")
class StoresWeightsIn16Bits(PortableBackend):
    annotate = changed_weight_qspec(dtype=torch.int16, quant_min=-32767, quant_max=32767)


def changed_values(**changes: Any) -> Any:
    def annotate(self: Any, model: Any, plan: Any) -> Any:
        report = annotate_graph(model, plan, TABLE, "portable")
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            spec = getattr(annotation, "output_qspec", None)
            if hasattr(spec, "quant_min"):
                annotation.output_qspec = type(spec)(**{**vars(spec), **changes})
        return report

    return qcore.hookimpl(annotate)


@caught_by(QSPECS, "linear is torch.uint8, not torch.int8, on its value")
class StoresValuesUnsigned(PortableBackend):
    annotate = changed_values(dtype=torch.uint8, quant_min=0, quant_max=255)


@caught_by(QSPECS, "linear has levels from -127 to 127, not from -128 to 127, on its value")
class LeavesALevelOfValuesOut(PortableBackend):
    annotate = changed_values(quant_min=-127)


@caught_by(QSPECS, "linear is symmetric, not asymmetric, on its value")
class MakesValuesSymmetric(PortableBackend):
    annotate = changed_values(qscheme=torch.per_tensor_symmetric)


@caught_by(QSPECS, "linear has 4 bits on its value")
class RoundsValuesToFourBits(PortableBackend):
    annotate = changed_values(quant_min=-8, quant_max=7)


@caught_by(QSPECS, "linear is dynamic on its value")
class MeasuresAValueAtRunTime(PortableBackend):
    annotate = changed_values(is_dynamic=True)


def annotated_with(scheme: QuantizationScheme) -> Any:
    """Annotate with one scheme, whichever was selected."""

    def annotate(self: Any, model: Any, plan: Any) -> Any:
        other = plan.selectors.mapped(lambda _: scheme.to_config())
        return annotate_graph(model, QuantizationPlan(other), TABLE, "portable")

    return qcore.hookimpl(annotate)


@caught_by(QSPECS, "8a8w static per-tensor was selected, and linear has scales per channel")
class QuantizesPerChannelWhatIsPerTensor(PortableBackend):
    annotate = annotated_with(SCHEMES[0])


@caught_by(QSPECS, "8a8w static per-channel was selected, and linear has scales per tensor")
class QuantizesPerTensorWhatIsPerChannel(PortableBackend):
    annotate = annotated_with(SCHEMES[1])


@caught_by(QSPECS, "16a8w static per-channel was selected, and linear has 8 bits")
class RunsSixteenBitsInEight(PortableBackend):
    supported_schemes = with_schemes(QuantizationScheme(8, 16))
    annotate = annotated_with(SCHEMES[0])


@caught_by(QSPECS, "8da8w dynamic per-channel was selected, and linear is static")
class RunsDynamicRangesStatic(PortableBackend):
    supported_schemes = with_schemes(DYNAMIC)
    annotate = annotated_with(SCHEMES[0])


@caught_by(QSPECS, "linear is observed, without fake quantization, on")
class TrainsWithoutFakeQuantization(PortableBackend):
    supported_schemes = with_schemes(SCHEMES[0], QuantizationScheme(8, 8, is_qat=True))
    annotate = annotated_with(SCHEMES[0])


@caught_by(
    QSPECS, "8w weight-only per-channel was selected, and linear is quantized, which the scheme"
)
class QuantizesValuesOfWeightOnly(PortableBackend):
    supported_schemes = with_schemes(SCHEMES[2])
    annotate = annotated_with(SCHEMES[0])


SHIFTING = NumberFormat("8", torch.int8, -127, 127, symmetric=True, scales=power_of_two)
SHIFTED = QuantizationScheme(SHIFTING, SHIFTING)


@caught_by(
    calls("declared_scheme_is_executed", SHIFTED),
    r"linear reads a weight with the scale .*: the scheme's are symmetric int8, power-of-two",
)
class ScalesWeightsAsItLikes(PortableBackend):
    supported_schemes = with_schemes(SHIFTED)
    annotate = changed_weight_qspec(observer_or_fake_quant_ctr=PerChannelMinMaxObserver)


@caught_by(
    calls("declared_scheme_is_executed", SHIFTED),
    r"reads values with the scale .*: the scheme's are symmetric int8, power-of-two scales",
)
class ScalesValuesAsItLikes(PortableBackend):
    supported_schemes = with_schemes(SHIFTED)
    annotate = changed_values(observer_or_fake_quant_ctr=MinMaxObserver)
