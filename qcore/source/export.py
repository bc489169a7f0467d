"""From a model that ``quantize_`` has treated to an exported program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from qcore.capture import Sample, exported_program
from qcore.compat.fakes import quick_fakes
from qcore.compat.torchao import IntxUnpackedToInt8Tensor, unwrap_tensor_subclass
from qcore.errors import UnsupportedSchemeError
from qcore.quiet import quiet
from qcore.schemes import LayerScheme, listed
from qcore.source.modules import is_quantized, quantized_layers, stored_weight

__all__ = ["check_layers", "export_quantized"]


def check_layers(model: nn.Module, supported: Sequence[LayerScheme], backend: str) -> None:
    """Raise for layers that the backend cannot execute, as torchao's own ``quantize_`` leaves them.

    Args:
        model: A model with quantized layers.
        supported: The backend's schemes of source quantization.
        backend: Its name, for the message.

    Raises:
        UnsupportedSchemeError: Naming every such layer and what the backend executes.
    """
    problems = []
    for layer in quantized_layers(model):
        # A group as long as the row is one scale a row: either form of the scheme is the layer's.
        forms = [layer.scheme]
        if layer.scheme.granularity == "per_channel":
            forms.append(evolve(layer.scheme, granularity="per_group"))
        declared = next((s for form in forms for s in supported if s.covers(form)), None)
        if declared is None:
            problems.append(f"  {layer.name}: {layer.scheme}")
            continue
        size = layer.group_size if declared.granularity == "per_group" else None
        misfit = declared.misfit(*layer.shape, size, backend)
        if misfit:
            problems.append(f"  {layer.name}: {layer.scheme}: {misfit}")
    if problems:
        raise UnsupportedSchemeError(
            f"{backend} does not execute {len(problems)} layers of this model:\n"
            + "\n".join(problems)
            + f"\nIt executes: {listed(supported) or 'no source-quantized layer'}.\n"
            f"Quantize the float model with qcore.quantize_(model, {backend!r}, ...), which checks "
            "this first."
        )


def export_quantized(
    model: nn.Module, example_inputs: Any, dynamic_shapes: Any = None
) -> ExportedProgram:
    """Export a model with quantized weights, as plain tensors and dequantize operators.

    Args:
        model: The model; left as it is.
        example_inputs: Its inputs: a tensor, a tuple of positional ones or a mapping of keywords.
        dynamic_shapes: As ``torch.export.export`` takes it; ``None`` fixes every size.

    Returns:
        The program, in evaluation mode, without gradient modes in its graph.

    Raises:
        CaptureError: The model cannot be exported.
    """
    sample = Sample.of(example_inputs)
    tensors = [*model.parameters(), *model.buffers()]
    # Unwrapping replaces parameters: it gets modules of its own, and the same tensors.
    with quiet():
        own = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
        layers = [module for module in own.modules() if is_quantized(module)]
        dtypes = [_compute_in_float32(layer) for layer in layers]
        unwrap_tensor_subclass(own)
        for layer, dtype in zip(layers, dtypes, strict=True):
            _read_as_values(layer, dtype)
        _without_gradients(own)
    # Without gradients there are no torch.no_grad() bodies, which the operators of older torchao
    # modules would otherwise be wrapped in.
    with quiet(), torch.no_grad(), quick_fakes():
        return exported_program(own, sample, dynamic_shapes)


def _without_gradients(model: nn.Module) -> None:
    """Give a model parameters of its own that need no gradient; tensors are shared as before."""
    own: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.requires_grad:
                fixed = own.setdefault(id(value), nn.Parameter(value.detach(), False))
                module._parameters[name] = fixed


class _Values(nn.Module):  # type: ignore[misc]
    """Gives a layer its quantized weight, and whoever else reads it the values it stands for.

    A head that has an embedding's table transposes it, which no quantized weight knows.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_layer = False
        self._dtype = dtype

    def forward(self, weight: Any) -> torch.Tensor:
        values: torch.Tensor = weight if self.in_layer else weight.dequantize()
        return values if self.in_layer or values.dtype == self._dtype else values.to(self._dtype)


def _read_as_values(layer: nn.Module, dtype: torch.dtype) -> None:
    if not parametrize.is_parametrized(layer, "weight"):
        return
    values = _Values(dtype)
    parametrize.register_parametrization(layer, "weight", values, unsafe=True)
    compute = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        values.in_layer = True
        try:
            result: torch.Tensor = compute(x)
        finally:
            values.in_layer = False
        return result

    layer.forward = forward


def _compute_in_float32(layer: nn.Module) -> torch.dtype:
    """Let a layer take rows of float32 alone, which is what compilers know as a quantized layer.

    Inputs of one dimension are a row; other types are cast, and the result is cast back.

    Returns:
        The type that the rest of the model knows the weight in.
    """
    weight: Any = stored_weight(layer)
    dtype: torch.dtype = (
        weight.dtype if isinstance(weight, IntxUnpackedToInt8Tensor) else torch.float32
    )
    if dtype != torch.float32:
        layer.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    compute = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x if dtype == torch.float32 or not x.is_floating_point() else x.float()
        y = compute(rows.view(1, -1)).squeeze(0) if x.dim() == 1 else compute(rows)
        return y if dtype == torch.float32 else y.to(dtype)

    layer.forward = forward
    return dtype
