"""Models of one operator each, for the table of operators by backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from qcore.testing.models import Fn, ZooModel

__all__ = ["OPERATORS"]

Function = Callable[[torch.Tensor], torch.Tensor]

_ROWS: Final = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
_IMAGE: Final = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
_SIGNAL: Final = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))


def _after_linear(function: Function) -> Callable[[], nn.Module]:
    """An operator that is quantized where its input is: behind a layer that most quantize."""
    return lambda: Fn(lambda m, x: function(m.linear(x)), linear=nn.Linear(16, 16))


def _after_conv(function: Function) -> Callable[[], nn.Module]:
    return lambda: Fn(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(4, 8, 3, padding=1))


def _of_two(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    return lambda: Fn(
        lambda m, x: function(m.a(x), m.b(x)), a=nn.Linear(16, 16), b=nn.Linear(16, 16)
    )


def _attend(x: torch.Tensor) -> torch.Tensor:
    heads = x.view(1, 2, 2, 8)
    return F.scaled_dot_product_attention(heads, heads, heads)


_LAYERS: Final[dict[str, tuple[Callable[[], nn.Module], torch.Tensor]]] = {
    "linear": (lambda: nn.Linear(16, 16), _ROWS),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3), _SIGNAL),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3), _IMAGE),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), _IMAGE),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), _IMAGE),
    "conv2d, dilated": (lambda: nn.Conv2d(4, 8, 3, dilation=2), _IMAGE),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3, padding=1), _IMAGE[None].permute(0, 2, 1, 3, 4)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 8, 3), _IMAGE),
    "embedding": (lambda: nn.Embedding(10, 16), torch.arange(6).reshape(1, 6)),
}

_TWO: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y.abs() + 1),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "cat": lambda x, y: torch.cat([x, y], 1),
    "stack": lambda x, y: torch.stack([x, y]),
    "matmul": lambda x, y: torch.matmul(x, y.transpose(0, 1)),
    "bmm": lambda x, y: torch.bmm(x[None], y[None].transpose(1, 2)),
}

_ON_ROWS: Final[dict[str, Function]] = {
    "add, scalar": lambda x: x + 1.5,
    "mul, scalar": lambda x: x * 1.5,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-1, 1),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, (16,)),
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": torch.exp,
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "amax": lambda x: x.amax(-1),
    "view": lambda x: x.view(4, 8),
    "reshape": lambda x: x.reshape(4, 8),
    "permute": lambda x: x.permute(1, 0),
    "transpose": lambda x: x.transpose(0, 1),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "expand": lambda x: x.unsqueeze(0).expand(3, 2, 16),
    "slice": lambda x: x[:, 2:10],
    "attention": _attend,
}

_ON_IMAGES: Final[dict[str, Function]] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean, of images": lambda x: x.mean((2, 3), keepdim=True),
    "flatten": lambda x: x.flatten(1),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "upsample_nearest2d": lambda x: F.interpolate(x, scale_factor=2.0),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
}


def _case(name: str, build: Callable[[], nn.Module], x: torch.Tensor) -> ZooModel:
    return ZooModel(f"the operator {name}", build, ((x,),))


#: One model for each operator, by the operator's name; its last node is the operator.
OPERATORS: Final[dict[str, ZooModel]] = {
    **{name: _case(name, build, x) for name, (build, x) in _LAYERS.items()},
    **{name: _case(name, _of_two(function), _ROWS) for name, function in _TWO.items()},
    **{name: _case(name, _after_linear(function), _ROWS) for name, function in _ON_ROWS.items()},
    **{name: _case(name, _after_conv(function), _IMAGE) for name, function in _ON_IMAGES.items()},
}
