"""Evening out the columns of linear layers behind a norm, before their weights are chosen.

Weights of a group share a scale, so a column that is larger than those beside it costs them their
precision. A norm's weight that was folded into the layers behind it makes such columns. Dividing
each column by its size, and multiplying the norm's weight by it, is the same function.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.1, with a norm in the place of the first layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from qcore.capture import Sample
from qcore.source.modules import is_quantized
from qcore.source.planning import LayerPlan
from qcore.source.stages import with_one_row

__all__ = ["equalize"]

#: What asks a tensor for its shape or the like; all other functions use its values.
_ASKS: Final = frozenset({"__get__", "size", "dim"})


@torch.no_grad()  # type: ignore[untyped-decorator]
def equalize(model: nn.Module, plans: Sequence[LayerPlan], sample: Sample) -> None:
    """Even out the columns of layers to quantize, where all that a norm feeds are such layers.

    Nothing changes in a model that has layers which the sample does not reach: another sample may
    take another way through it.

    Args:
        model: The model, in evaluation mode; its function stays the same, up to rounding.
        plans: What becomes of its layers.
        sample: An input of the model.
    """
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = {
        id(plan.layer.module._parameters.get("weight")): plan.layer.module
        for plan in plans
        if plan.scheme is not None
        and plan.layer.kind == "linear"
        and not is_quantized(plan.layer.module)
    }
    layers = {weight: layer for weight, layer in layers.items() if owners[weight] == 1}
    trace = with_one_row(lambda: _traced(model, layers, owners, sample))
    if not layers.keys() <= {taker for _, taker in trace.edges}:
        return
    for norm, offset in trace.offsets.items():
        behind = {taker for source, taker in trace.edges if source is norm}
        if offset is None or not behind or None in behind:
            continue
        if all(source is norm for source, taker in trace.edges if taker in behind):
            _even_out(norm, offset, [layers[taker] for taker in behind if taker is not None])


def _traced(
    model: nn.Module, layers: Mapping[int, nn.Module], owners: Mapping[int, int], sample: Sample
) -> _Trace:
    trace = _Trace(layers)
    with ExitStack() as hooks:
        for module in model.modules():
            if list(module.children()) or any(owners[id(p)] != 1 for p in module.parameters()):
                continue
            hooks.enter_context(module.register_forward_hook(trace.leave, with_kwargs=True))
        with trace:
            trace.use(model(*sample.args, **sample.kwargs))
    return trace


def _even_out(norm: nn.Module, offset: float, layers: Sequence[nn.Module]) -> None:
    weights = [layer.weight for layer in layers]
    sizes = sum(weight.float().square().sum(0) for weight in weights).sqrt()
    sizes = torch.where(sizes > 0, sizes / sizes[sizes > 0].log().mean().exp(), 1.0)
    for layer, weight in zip(layers, weights, strict=True):
        _replace(layer, {"weight": weight / sizes})
    _replace(norm, _grown(norm, sizes, offset))


def _replace(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        old = module._parameters[name]
        assert old is not None
        module._parameters[name] = nn.Parameter(tensor.to(old.dtype), old.requires_grad)


def _grown(norm: nn.Module, by: torch.Tensor | float, offset: float) -> dict[str, torch.Tensor]:
    """Return the parameters with which a norm's output is larger; some add 1 to their weight."""
    return {
        name: (value + offset) * by - offset if name == "weight" else value * by
        for name, value in norm.named_parameters()
    }


class _Trace(TorchFunctionMode):  # type: ignore[misc]
    """Notes which layers take the outputs of norms, and what else does.

    Attributes:
        offsets: What a norm adds to its weight; ``None`` where its output does not grow with it.
        edges: (norm, the ``id`` of a layer's weight), each ``None`` for anything else.
    """

    def __init__(self, layers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.offsets: dict[nn.Module, float | None] = {}
        self.edges: set[tuple[nn.Module | None, int | None]] = set()
        self._layers = layers
        self._sources: Any = WeakIdKeyDictionary()

    def leave(self, norm: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Take note of a norm's output."""
        own = list(norm.parameters())
        if not own or not isinstance(output, torch.Tensor):
            return
        if any(value.shape != output.shape[-1:] for value in own):
            return
        if norm not in self.offsets:
            self.offsets[norm] = None  # The calls below come back here.
            for offset in (1.0, 0.0):
                more = functional_call(norm, _grown(norm, 2.0, offset), args, kwargs)
                self._sources.pop(more, None)
                if torch.allclose(more, 2 * output, rtol=1e-4):
                    self.offsets[norm] = offset
        self._sources[output] = norm

    def use(self, values: Any) -> None:
        """Take note of what something other than a layer takes."""
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                weight = id(value) if id(value) in self._layers else None
                self.edges |= {(self._sources.get(value), None), (None, weight)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and len(args) > 1:
            taker = id(args[1]) if id(args[1]) in self._layers else None
            self.edges.add((self._sources.get(args[0]), taker))
        elif func.__name__ not in _ASKS or isinstance(result, torch.Tensor):
            self.use((args, kwargs))
        return result
