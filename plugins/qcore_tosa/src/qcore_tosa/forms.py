"""Operators that TOSA's table lacks, written as others that it has."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.annotation.rewriting import rewrite_by
from qcore.graph import argument_of, each_dimension, is_float_tensor, tensor_value
from qcore.plan import QuantizationPlan
from qcore_tosa import layer_forms
from qcore_tosa.support import TABLE

__all__ = ["FORMS", "in_quantizable_forms"]

aten = torch.ops.aten


def in_quantizable_forms(model: GraphModule, plan: QuantizationPlan) -> None:
    """Write operators that the support table lacks as operators that it has.

    Those with a form of their own here, and those that torch itself composes of others; operators
    that stay in float or have dynamic activations are kept.

    Args:
        model: The captured model; changed in place.
        plan: Tells which operators will be quantized.
    """
    for node in list(model.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        form = FORMS.get(node.target)
        if form is None and not _is_composite(node):
            continue
        config = plan.config_for(node)
        if config is None or config.output_activation is None:
            continue
        if form is not None:
            function = form(model, node)
            if function is not None:
                rewrite_by(model, node, function, lambda _: True, whole=True)
        else:
            rewrite_by(model, node, node.target, _is_known, whole=False)


def _is_known(node: Node) -> bool:
    return node.target is operator.getitem or TABLE.pattern_for(node) is not None


def _is_composite(node: Node) -> bool:
    target: Any = node.target
    if TABLE.pattern_for(node) is not None or not target._can_decompose():
        return False
    return is_float_tensor(node) or any(map(is_float_tensor, node.all_input_nodes))


Form = Callable[[GraphModule, Node], Callable[..., Any] | None]


def _always(function: Callable[..., Any]) -> Form:
    return lambda model, node: function


def _prelu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Without a comparison, which Ethos-U55 lacks.
    slope = weight.reshape((-1, *(1,) * (x.dim() - 2))) if x.dim() > 1 else weight
    return functional.relu(x) - slope * functional.relu(-x)


def _softplus(x: torch.Tensor, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    # Of values between 0 and 1, where exp(x) would need a range that leaves none for small ones.
    del threshold
    scaled = x if beta == 1 else x * beta
    result = functional.relu(scaled) + torch.log1p(torch.exp(-torch.abs(scaled)))
    return result if beta == 1 else result / beta


def _mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(_softplus(x))


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -_softplus(-x)


def _rms_norm(
    x: torch.Tensor,
    shape: list[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normal = x * torch.rsqrt(torch.mean(x * x, dims, keepdim=True) + eps)
    return normal if weight is None else normal * weight


def _instance_norm(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    _, _, _, mean, variance, uses_input, *_ = node.args
    if not uses_input or mean is not None or variance is not None:
        return None

    def normalized(x: torch.Tensor, weight: Any, bias: Any, *rest: Any) -> torch.Tensor:
        return functional.group_norm(x, x.shape[1], weight, bias, rest[4])

    return normalized


def _index(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Write indexing of one dimension behind others, which TOSA's gathering does not take."""
    indices: Any = node.args[1]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given == [0]:
        return None
    index = tensor_value(indices[given[0]])
    if index is None or index.dim() != 1 or index.dtype is torch.bool:
        return None
    return lambda x, picked: torch.index_select(x, given[0], picked[given[0]])


def _roll(x: torch.Tensor, shifts: Any, dims: Any = ()) -> torch.Tensor:
    if not dims:
        return _roll(x.reshape(-1), shifts, [0]).reshape(x.shape)
    for shift, dim in zip(each_dimension(shifts), each_dimension(dims), strict=True):
        size = x.shape[dim]
        start = size - shift % size
        parts = aten.slice.Tensor(x, dim, start, size), aten.slice.Tensor(x, dim, 0, start)
        x = torch.cat(parts, dim)
    return x


def _rot90(x: torch.Tensor, k: int = 1, dims: Any = (0, 1)) -> torch.Tensor:
    if k % 2:
        x = torch.transpose(x, dims[0], dims[1])
    flipped = {0: [], 1: [dims[0]], 2: list(dims), 3: [dims[1]]}[k % 4]
    return torch.flip(x, flipped) if flipped else x


def _logsumexp(x: torch.Tensor, dim: Any, keepdim: bool = False) -> torch.Tensor:
    top = torch.amax(x, dim, keepdim=True)
    total = torch.log(torch.sum(torch.exp(x - top), dim, keepdim=True)) + top
    return total if keepdim else torch.squeeze(total, each_dimension(dim))


def _argmax(model: GraphModule, node: Node) -> Callable[..., Any] | None:
    """Write it in the form that TOSA has: along one dimension, which goes away."""
    dim, keepdim = argument_of(node, "dim", None), argument_of(node, "keepdim", False)
    if dim is not None and not keepdim:
        return None

    def positions(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if dim is not None:
            return torch.argmax(x, dim).unsqueeze(dim)
        found = torch.argmax(x.reshape(-1), 0)
        return found.reshape([1] * x.dim()) if keepdim else found

    return positions


def _largest(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, ...]:
    return torch.amax(x, [dim], keepdim), torch.argmax(x, dim, keepdim)


def _smallest(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, ...]:
    return torch.amin(x, [dim], keepdim), torch.argmax(-x, dim, keepdim)


def _of_all(reduce: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x: reduce(x, list(range(x.dim())))


#: Operator -> its form: what makes a function of its arguments; none leaves it as it is.
FORMS: Final[dict[Any, Form]] = {
    aten.max.dim: _always(_largest),
    aten.min.dim: _always(_smallest),
    aten.argmax.default: _argmax,
    aten.argmin.default: _always(lambda x, *args, **kw: torch.argmax(-x, *args, **kw)),
    aten.index.Tensor: _index,
    aten.roll.default: _always(_roll),
    aten.rot90.default: _always(_rot90),
    aten.frac.default: _always(lambda x: x - torch.sign(x) * torch.floor(torch.abs(x))),
    aten.max.default: _always(_of_all(torch.amax)),
    aten.min.default: _always(_of_all(torch.amin)),
    aten.relu6.default: _always(lambda x: functional.hardtanh(x, 0.0, 6.0)),
    aten.clamp_min.default: _always(lambda x, low: torch.clamp(x, min=low)),
    aten.clamp_max.default: _always(lambda x, high: torch.clamp(x, max=high)),
    aten.max_pool2d_with_indices.default: layer_forms.max_pool_form,
    aten.adaptive_max_pool1d.default: layer_forms.adaptive_max_form,
    aten.adaptive_max_pool2d.default: layer_forms.adaptive_max_form,
    aten.conv_transpose1d.default: layer_forms.transposed_form,
    aten.exp2.default: _always(lambda x: torch.exp(x * math.log(2))),
    aten.log2.default: _always(lambda x: torch.log(x) * (1 / math.log(2))),
    aten.erfc.default: _always(lambda x: 1 - torch.erf(x)),
    aten.trunc.default: _always(lambda x: torch.sign(x) * torch.floor(torch.abs(x))),
    aten.detach.default: _always(lambda x: x),
    aten.square.default: _always(lambda x: x * x),
    aten.prelu.default: _always(_prelu),
    aten.softplus.default: _always(_softplus),
    aten.mish.default: _always(_mish),
    aten.log_sigmoid.default: _always(_log_sigmoid),
    aten.rms_norm.default: _always(_rms_norm),
    aten.instance_norm.default: _instance_norm,
    aten.batch_norm.default: layer_forms.batch_norm_form,
    aten.logsumexp.default: _always(_logsumexp),
    aten.lerp.Scalar: _always(lambda x, y, weight: x + (y - x) * weight),
    aten.addcmul.default: _always(lambda x, a, b, value=1: x + a * b * value),
    aten.addcdiv.default: _always(lambda x, a, b, value=1: x + a / b * value),
    aten.baddbmm.default: _always(
        lambda x, a, b, beta=1, alpha=1: x * beta + torch.bmm(a, b) * alpha
    ),
    aten.std.dim: _always(lambda *args, **kw: torch.sqrt(torch.var(*args, **kw))),
    aten.std.correction: _always(lambda *args, **kw: torch.sqrt(torch.var(*args, **kw))),
    aten.channel_shuffle.default: _always(
        lambda x, groups: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    ),
    aten.dot.default: _always(lambda x, y: torch.sum(x * y, [0])),
    aten.mv.default: _always(lambda x, y: torch.matmul(x, y.unsqueeze(-1)).squeeze(-1)),
    aten.conv1d.padding: layer_forms.padding_form,
    aten.conv2d.padding: layer_forms.padding_form,
    aten.conv3d.padding: layer_forms.padding_form,
    aten.upsample_nearest2d.vec: layer_forms.nearest_form,
}
