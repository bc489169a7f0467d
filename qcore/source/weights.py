"""Quantizing the weights themselves, a slice at a time, and keeping tied ones tied."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import nn

from qcore.algorithms import Gptq, SquaredError, WeightAlgorithm, WeightGrid
from qcore.compat.torchao import IntxUnpackedToInt8Tensor
from qcore.compat.torchao import quantize_ as torchao_quantize_
from qcore.errors import UnsupportedSchemeError
from qcore.source.modules import stored_weight
from qcore.source.planning import LayerPlan

__all__ = [
    "WEIGHT_ALGORITHMS",
    "TorchaoAlgorithm",
    "quantize_layers",
    "quantized_weight",
    "tied_layers",
]

# Weights quantized at once. torchao holds dozens of copies of what it quantizes, and large ones
# leave holes in the heap: with 2**20 the peak is 1.3 to 1.6 times the float model plus the result,
# with 2**16 below 1, and it is faster.
_AT_ONCE: Final = 2**16


class TorchaoAlgorithm(WeightAlgorithm):
    """One of torchao's own, which quantizes by a configuration.

    Attributes:
        choice: torchao's name for how scales are chosen; ``None`` for what the configuration says.
    """

    choice: ClassVar[str | None] = None


class _Rounding(TorchaoAlgorithm):
    name = "round"


class _ScaleOnlyHqq(TorchaoAlgorithm):
    name, choice = "hqq", "hqq_scale_only"


#: How the weights of ``quantize_`` may be chosen, by name.
WEIGHT_ALGORITHMS: Final[dict[str, WeightAlgorithm]] = {
    algorithm.name: algorithm
    for algorithm in (
        _Rounding(),
        SquaredError(),
        Gptq(),
        _ScaleOnlyHqq(),
    )
}


def quantized_weight(
    integers: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    *,
    dtype: torch.dtype = torch.float32,
    is_dynamic: bool = False,
) -> torch.Tensor:
    """Make a weight of integers and scales that were chosen elsewhere.

    A linear layer that has it as ``weight``, activations in float, computes with it; ``quantize_``
    leaves integers and scales as they are.

    Args:
        integers: (outputs, inputs), of an integer type.
        scales: (outputs, inputs / group), positive.
        bits: Bits of an integer, as a device stores it: 2, 4 or 8.
        dtype: What the layer computes in.
        is_dynamic: Whether activations are quantized to int8 at run time.

    Returns:
        The weight, (outputs, inputs).

    Raises:
        UnsupportedSchemeError: An integer has more bits, or a scale is no positive number.
    """
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    found = int(integers.min()), int(integers.max())
    if found[0] < low or found[1] > high:
        raise UnsupportedSchemeError(
            f"integers from {found[0]} to {found[1]}, and {bits} bits without zero points are "
            f"{low} to {high}. Quantize the float weight instead."
        )
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise UnsupportedSchemeError(
            "a scale is 0, negative or no number. Quantize the float weight instead."
        )
    return IntxUnpackedToInt8Tensor(
        integers.to(torch.int8),
        scales.to(dtype),
        torch.zeros_like(scales, dtype=torch.int8),
        getattr(torch, f"int{bits}"),
        (1, integers.shape[1] // scales.shape[1]),
        dtype,
        "int8_asym_per_token" if is_dynamic else None,
    )


def tied_layers(plans: Sequence[LayerPlan]) -> list[list[LayerPlan]]:
    """Sort layers by the tensor that is their weight.

    Args:
        plans: The plans of a model's layers.

    Returns:
        Groups of layers with one weight, in the order of the first of each.
    """
    groups: dict[int, list[LayerPlan]] = {}
    for plan in plans:
        weight = stored_weight(plan.layer.module)
        groups.setdefault(id(plan if weight is None else weight), []).append(plan)
    return list(groups.values())


@torch.no_grad()  # type: ignore[untyped-decorator]
def quantize_layers(
    group: Sequence[LayerPlan], algorithm: WeightAlgorithm, moment: torch.Tensor | None
) -> dict[str, str]:
    """Quantize the layers that share one weight, and let those of one format share the result.

    Args:
        group: The layers' plans; the float weight is freed when all of them are quantized.
        algorithm: Chooses the integers and the scales.
        moment: What it may know about the inputs of the layers.

    Returns:
        Layer -> the layer whose quantized weight it shares.
    """
    results: list[tuple[LayerPlan, Any]] = []
    shared: dict[str, str] = {}
    for plan in group:
        if plan.scheme is None:
            continue
        weight = stored_weight(plan.layer.module)
        assert weight is not None
        first = next(((p, t) for p, t in results if _format(p) == _format(plan)), None)
        if first is not None:
            quantized = _with_activation(first[1], plan)
            shared[plan.layer.name] = first[0].layer.name
        elif isinstance(weight, IntxUnpackedToInt8Tensor):
            quantized = _with_activation(weight, plan)
        else:
            if plan.padding:
                weight = nn.functional.pad(weight, (0, 0, 0, plan.padding))
            quantized = _quantized(weight, plan, algorithm, moment)
        results.append((plan, quantized))
    for plan, quantized in results:
        # The class may keep a weight as a buffer, under the same name.
        plan.layer.module._buffers.pop("weight", None)
        plan.layer.module.weight = nn.Parameter(quantized, requires_grad=False)
        if plan.padding:
            _cut_outputs(plan.layer.module, plan.padding)
    return shared


def _cut_outputs(layer: nn.Module, padding: int) -> None:
    """Give a linear layer whose weight is padded a bias to match, and its own outputs."""
    if layer.bias is not None:
        padded = nn.functional.pad(layer.bias, (0, padding))
        layer.bias = nn.Parameter(padded, requires_grad=False)
    layer.register_forward_hook(_own_outputs)


def _own_outputs(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    del inputs
    return output[..., : layer.out_features]


def _format(plan: LayerPlan) -> tuple[Any, ...]:
    assert plan.scheme is not None
    config = plan.scheme.torchao_config()
    details = {
        key.removeprefix("weight_"): str(value)
        for key, value in vars(config).items()
        if key != "act_mapping_type"
    }
    return plan.scale_dtype, plan.padding, *sorted(details.items())


def _with_activation(weight: Any, plan: LayerPlan) -> Any:
    assert plan.scheme is not None
    return IntxUnpackedToInt8Tensor(
        weight.qdata,
        weight.scale.to(plan.scale_dtype).to(weight.scale.dtype),
        weight.zero_point,
        weight.target_dtype,
        weight.block_size,
        weight.dtype,
        "int8_asym_per_token" if plan.scheme.is_dynamic else None,
    )


def _quantized(
    weight: torch.Tensor,
    plan: LayerPlan,
    algorithm: WeightAlgorithm,
    moment: torch.Tensor | None,
) -> Any:
    assert plan.scheme is not None
    if isinstance(algorithm, TorchaoAlgorithm):
        config = plan.scheme.torchao_config()
        if algorithm.choice is not None:
            config = dataclasses.replace(config, intx_choose_qparams_algorithm=algorithm.choice)
        return _sliced(weight, config, plan.scale_dtype)
    size, bits = plan.scheme.group_size, plan.scheme.weight_bits
    group = size if isinstance(size, int) else weight.shape[1]
    grid = WeightGrid(-(1 << bits - 1), (1 << bits - 1) - 1, group, plan.scale_dtype)
    values, scales = algorithm.choose(weight.detach(), grid, moment)
    return quantized_weight(
        values, scales, bits, dtype=weight.dtype, is_dynamic=plan.scheme.is_dynamic
    )


def _sliced(weight: torch.Tensor, config: Any, scale_dtype: torch.dtype) -> Any:
    rows, columns = weight.shape
    step = max(1, _AT_ONCE // columns)
    # Any other algorithm stops when the mean error over the whole weight no longer falls.
    if step >= rows or config.intx_choose_qparams_algorithm != "affine":
        return _by_torchao(weight, config, scale_dtype)
    whole: list[torch.Tensor] = []
    part: Any = None
    for start in range(0, rows, step):
        part = _by_torchao(weight[start : start + step], config, scale_dtype)
        pieces = (part.qdata, part.scale, part.zero_point)
        if not whole:
            whole = [piece.new_empty((rows, *piece.shape[1:])) for piece in pieces]
        for target, piece in zip(whole, pieces, strict=True):
            target[start : start + step] = piece
    return IntxUnpackedToInt8Tensor(
        *whole, part.target_dtype, part.block_size, part.dtype, part.activation_quantization
    )


def _by_torchao(weight: torch.Tensor, config: Any, scale_dtype: torch.dtype) -> Any:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    torchao_quantize_(nn.Sequential(layer), config)
    quantized: Any = layer.weight
    if scale_dtype.itemsize >= quantized.scale.dtype.itemsize:
        return quantized
    # torchao can quantize with narrower scales, but also divides in their precision.
    return IntxUnpackedToInt8Tensor.from_hp(
        weight,
        quantized.block_size,
        quantized.target_dtype,
        activation_quantization=quantized.activation_quantization,
        intx_choose_qparams_algorithm=None,
        custom_scale=quantized.scale.to(scale_dtype).to(quantized.scale.dtype),
        custom_zero_point=quantized.zero_point,
    )
