"""Functions of tensors, written as simpler ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from qcore.annotation.forms.applying import Form, Written, always
from qcore.graph import argument_of, each_dimension, is_float_tensor

__all__ = ["FUNCTION_FORMS"]

aten = torch.ops.aten


def _prelu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Without a comparison, which integer hardware may lack.
    slope = weight.reshape((-1, *(1,) * (x.dim() - 2))) if x.dim() > 1 else weight
    return functional.relu(x) - slope * functional.relu(-x)


def _negated(model: GraphModule, node: Node) -> Written | None:
    # An integer negation, where there is one, keeps the step: it would need a range of its own.
    return Written(lambda x: x * -1.0) if is_float_tensor(node) else None


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


def _instance_norm(model: GraphModule, node: Node) -> Written | None:
    _, _, _, mean, variance, uses_input, *_ = node.args
    if not uses_input or mean is not None or variance is not None:
        return None

    def normalized(x: torch.Tensor, weight: Any, bias: Any, *rest: Any) -> torch.Tensor:
        return functional.group_norm(x, x.shape[1], weight, bias, rest[4])

    return Written(normalized)


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


def _largest(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, ...]:
    return torch.amax(x, [dim], keepdim), torch.argmax(x, dim, keepdim)


def _smallest(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, ...]:
    return torch.amin(x, [dim], keepdim), torch.argmax(-x, dim, keepdim)


def _of_all(reduce: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x: reduce(x, list(range(x.dim())))


def _scalar(node: Node, value: Any) -> torch.Tensor:
    return torch.tensor(float(value), device=node.meta["val"].device)


def _difference(model: GraphModule, node: Node) -> Written | None:
    if argument_of(node, "alpha", 1) != 1 or not is_float_tensor(node):
        return None
    return Written(aten.sub.Tensor, (_scalar(node, node.args[1]), node.args[0]))


def _erfc(model: GraphModule, node: Node) -> Written:
    return Written(lambda one, x: one - torch.erf(x), (_scalar(node, 1), node.args[0]))


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1 else x * factor


def _baddbmm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return _times(x, beta) + _times(torch.bmm(a, b), alpha)


def _deviation(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.sqrt(torch.var(*args, **kwargs))


FUNCTION_FORMS: Final[dict[Any, Form]] = {
    aten.max.dim: always(_largest),
    aten.min.dim: always(_smallest),
    aten.max.default: always(_of_all(torch.amax)),
    aten.min.default: always(_of_all(torch.amin)),
    aten.roll.default: always(_roll),
    aten.rot90.default: always(_rot90),
    aten.channel_shuffle.default: always(
        lambda x, groups: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    ),
    aten.detach.default: always(lambda x: x),
    aten.frac.default: always(lambda x: x - torch.sign(x) * torch.floor(torch.abs(x))),
    aten.trunc.default: always(lambda x: torch.sign(x) * torch.floor(torch.abs(x))),
    aten.relu6.default: always(lambda x: functional.hardtanh(x, 0.0, 6.0)),
    aten.clamp_min.default: always(lambda x, low: torch.clamp(x, min=low)),
    aten.clamp_max.default: always(lambda x, high: torch.clamp(x, max=high)),
    aten.exp2.default: always(lambda x: torch.exp(x * math.log(2))),
    aten.log2.default: always(lambda x: torch.log(x) * (1 / math.log(2))),
    aten.erfc.default: _erfc,
    aten.rsub.Scalar: _difference,
    aten.square.default: always(lambda x: x * x),
    aten.neg.default: _negated,
    aten.prelu.default: always(_prelu),
    aten.softplus.default: always(_softplus),
    aten.mish.default: always(_mish),
    aten.log_sigmoid.default: always(_log_sigmoid),
    aten.rms_norm.default: always(_rms_norm),
    aten.instance_norm.default: _instance_norm,
    aten.logsumexp.default: always(_logsumexp),
    aten.lerp.Scalar: always(lambda x, y, weight: x + (y - x) * weight),
    aten.addcmul.default: always(lambda x, a, b, value=1: x + _times(a * b, value)),
    aten.addcdiv.default: always(lambda x, a, b, value=1: x + _times(a / b, value)),
    aten.baddbmm.default: always(_baddbmm),
    aten.std.dim: always(_deviation),
    aten.std.correction: always(_deviation),
    aten.dot.default: always(lambda x, y: torch.sum(x * y, [0])),
    aten.mv.default: always(lambda x, y: torch.matmul(x, y.unsqueeze(-1)).squeeze(-1)),
}
