"""What qcore uses of torchao, and what it changes of it: for speed, and where results are wrong.

The rest of qcore takes torchao's names from here: they are imported without the noise that torchao
makes then, and one that torchao moves is moved in one file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Final

import torch
from torch.fx import Node

from qcore.compat.patching import Change, Requirement, Wording
from qcore.compat.torch import PACKETS
from qcore.quiet import quiet

# torch makes its handlers of log records first, so that what torchao says through them is hidden.
with quiet():
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxUnpackedToInt8Tensor,
        IntxWeightOnlyConfig,
        quantize_,
    )
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.linear_quant_modules import Int8DynActInt4WeightLinear
    from torchao.quantization.pt2e import (
        FakeQuantize,
        FakeQuantizeBase,
        FusedMovingAvgObsFakeQuantize,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PartialWrapper,
        PerChannelMinMaxObserver,
        PlaceholderObserver,
        disable_fake_quant,
        enable_fake_quant,
    )
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
        prepare_qat_pt2e,
    )
    from torchao.quantization.pt2e.quantizer import (
        DerivedQuantizationSpec,
        FixedQParamsQuantizationSpec,
        QuantizationAnnotation,
        QuantizationConfig,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )
    from torchao.quantization.pt2e.quantizer.quantizer import (
        Q_ANNOTATION_KEY,
        QuantizationSpecBase,
    )
    from torchao.quantization.quant_primitives import MappingType
    from torchao.utils import TorchAOBaseTensor, UnwrapTensorSubclass, unwrap_tensor_subclass

__all__ = [
    "AVERAGES",
    "EXTREMES",
    "FAKES",
    "HISTOGRAM",
    "Q_ANNOTATION_KEY",
    "DerivedQuantizationSpec",
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsQuantizationSpec",
    "FusedMovingAvgObsFakeQuantize",
    "Int8DynActInt4WeightLinear",
    "Int8DynamicActivationIntxWeightConfig",
    "IntxUnpackedToInt8Tensor",
    "IntxWeightOnlyConfig",
    "MappingType",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PartialWrapper",
    "PerAxis",
    "PerChannelMinMaxObserver",
    "PerGroup",
    "PlaceholderObserver",
    "QuantizationAnnotation",
    "QuantizationConfig",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "TorchAOBaseTensor",
    "UnwrapTensorSubclass",
    "check_observers",
    "convert_pt2e",
    "disable_fake_quant",
    "enable_fake_quant",
    "exact_folds",
    "fusions_of_present_convolutions",
    "is_preparing_for_training",
    "made_by",
    "maker_of",
    "names_before_fusion",
    "prepare_pt2e",
    "prepare_qat_pt2e",
    "quantize_",
    "unwrap_tensor_subclass",
]

_TORCHAO: Final = (__name__, "torchao", ">=0.18,<0.19")

#: The observer whose search for a range is ours.
HISTOGRAM: Final = Requirement(
    *_TORCHAO,
    "torchao.quantization.pt2e.observer:HistogramObserver",
    ["_non_linear_param_search"],
    why="its search for a range takes most of the time of converting a model, and is overridden.",
)
_OBSERVERS: Final = "torchao.quantization.pt2e.observer"
#: The extremes that observers keep.
EXTREMES: Final = tuple(
    Wording(
        *_TORCHAO,
        f"{_OBSERVERS}:{name}",
        ["min_val", "max_val", "is_dynamic"],
        why="what the calibration samples show is read there.",
    )
    for name in ("MinMaxObserver", "PerChannelMinMaxObserver", "HistogramObserver")
)
#: What moving averages take of each new extreme.
AVERAGES: Final = tuple(
    Wording(
        *_TORCHAO,
        f"{_OBSERVERS}:{name}",
        ["averaging_constant"],
        why="while samples run, averages keep the extremes of all.",
    )
    for name in ("MovingAverageMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
)
#: The observer in fake quantization.
FAKES: Final = Wording(
    *_TORCHAO,
    "torchao.quantization.pt2e.fake_quantize:FakeQuantize",
    ["activation_post_process", "is_dynamic"],
    why="fake quantization without it is taken for an observer of its own.",
)


def check_observers(*more: Requirement) -> None:
    """Raise where observers no longer keep their ranges as they are read.

    Args:
        *more: What else is read of them.

    Raises:
        LibraryChangedError: They have other names for it.
    """
    for requirement in (FAKES, *EXTREMES, *more):
        requirement.checked()


_SPECS: Final = Wording(
    *_TORCHAO,
    "torchao.quantization.pt2e.quantizer:QuantizationSpec",
    ["observer_or_fake_quant_ctr"],
    why="a specification without it is taken for one without an observer.",
)
_PARTIALS: Final = Wording(
    *_TORCHAO,
    f"{_OBSERVERS}:PartialWrapper",
    ["p"],
    why="what has no such part is taken for an observer without options.",
)
_PREPARATION: Final = Wording(
    *_TORCHAO,
    "torchao.quantization.pt2e.quantize_pt2e:prepare_pt2e",
    ["node_name_to_scope"],
    why="it has the names of nodes before batch norms are folded, which rules go by.",
)
_FUSIONS: Final = Change(
    *_TORCHAO,
    "torchao.quantization.pt2e.qat_utils",
    ["_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper"],
    why="for quantization-aware training it exports some 100 patterns in convert_pt2e, a quarter "
    "of them for each of four kinds of convolution, which takes most of the time for all but large "
    "models.",
)

_FOLDS: Final = Change(
    *_TORCHAO,
    "torchao.quantization.pt2e.utils",
    ["fold_bn_weights_into_conv_node", "fold_bn_weights_into_linear_node"],
    why="before it asks a quantizer, it folds batch norms into layers whose result or weight "
    "something else reads, too, which then computes something else, and it raises where a weight "
    "is computed.",
)


def exact_folds() -> AbstractContextManager[None]:
    """Fold batch norms only into layers that nothing else reads, and whose weights are their own.

    A layer that is called several times is folded where the same batch norm follows each call.
    """
    decided: dict[tuple[int, str], bool] = {}

    def where_exact(fold: Callable[..., None]) -> Callable[..., None]:
        def folded(layer: Any, weight: Any, bias: Any, norm: Any, *rest: Any) -> None:
            key = id(layer.graph), str(weight.target)
            # What was folded before reads no batch norm any more.
            if decided.setdefault(key, _is_exact(weight, norm)):
                fold(layer, weight, bias, norm, *rest)

        return folded

    return _FOLDS.applied(*map(where_exact, _FOLDS.originals()))


def _is_exact(weight: Node, norm: Node) -> bool:
    if weight.op != "get_attr":
        return False
    same = [n for n in weight.graph.find_nodes(op="get_attr") if n.target == weight.target]
    users = [[*layer.users] for node in same for layer in node.users]
    return all(
        len(found) == 1 and found[0].target is norm.target and found[0].args[1:] == norm.args[1:]
        for found in users
    )


def fusions_of_present_convolutions() -> AbstractContextManager[None]:
    """Fuse batch norms only into the kinds of convolution that a model has."""
    PACKETS.checked()

    def where_present(fuse: Callable[..., Any]) -> Callable[..., Any]:
        def fused(model: Any, kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
            wanted = getattr(torch.ops.aten, kind.__name__)
            targets = (getattr(n.target, "overloadpacket", None) for n in model.graph.nodes)
            present = any(target == wanted for target in targets)
            return fuse(model, kind, *args, **options) if present else model

        return fused

    return _FUSIONS.applied(*map(where_present, _FUSIONS.originals()))


def maker_of(spec: Any) -> Any:
    """Return what makes the observer of a specification; ``None`` where that has none."""
    _SPECS.checked()
    return getattr(spec, "observer_or_fake_quant_ctr", None)


def made_by(maker: Any) -> tuple[Any, dict[str, Any]]:
    """Return what an observer is made by, such as its class, and the options that are given."""
    _PARTIALS.checked()
    partial = getattr(maker, "p", None)
    return getattr(partial, "func", maker), dict(getattr(partial, "keywords", {}))


def is_preparing_for_training() -> bool:
    """Say whether torchao's ``prepare_qat_pt2e`` is what called, however far up.

    It tells a quantizer nothing that ``prepare_pt2e`` does not, and whether a model will be trained
    is not to be seen in its graph.
    """
    return _calling(prepare_qat_pt2e) is not None


def names_before_fusion() -> tuple[str, ...]:
    """Return the names of all nodes that a graph had before ``prepare_pt2e`` folded batch norms.

    It does so before it asks the quantizer that calls this; empty where it is not what called.
    """
    _PREPARATION.checked()
    frame = _calling(prepare_pt2e)
    return tuple(frame.f_locals["node_name_to_scope"]) if frame is not None else ()


def _calling(function: Any) -> FrameType | None:
    """Return the frame of a function of torchao that called, however far up."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame
