"""Models of one operator each, in the forms in which programs get operators wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from qcore.testing.models import Fn, ZooModel

__all__ = ["VARIANTS"]

Function = Callable[[torch.Tensor], torch.Tensor]

# Two of each, of which height and width differ.
_IMAGES: Final = 2 * torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(1))
_SIGNALS: Final = 2 * torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
_ROWS: Final = 2 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
_DEEP: Final = 2 * torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))


def _conv(outputs: int = 8, kernel: Any = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(4, outputs, kernel, **options)


def _then(layer: Callable[[], nn.Module], function: Function) -> Callable[[], nn.Module]:
    return lambda: Fn(lambda m, x: function(m.layer(x)), layer=layer())


def _layer() -> nn.Module:
    return nn.Conv2d(4, 4, 1)


def _negative() -> nn.Module:
    """A layer whose values are all below zero."""
    layer = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.fill_(-5.0)
    return layer


def _identity() -> nn.Module:
    """A layer that changes nothing, so that what follows it gets the model's own inputs."""
    layer = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def _of_two(function: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Fn(lambda m, x: function(m.a(x), m.b(x)), a=_layer(), b=_layer())


def _outputs(x: torch.Tensor) -> Any:
    return {"first": x, "others": (torch.relu(x), [x.flatten(1)])}


_ON_IMAGES: Final[dict[str, Callable[[], nn.Module]]] = {
    "conv2d, stride 2, padded": lambda: _conv(stride=2, padding=1),
    "conv2d, stride 2 by 1": lambda: _conv(stride=(2, 1)),
    "conv2d, stride 1 by 2, padding 1 by 0": lambda: _conv(stride=(1, 2), padding=(1, 0)),
    "conv2d, kernel 3 by 1, padding 0 by 2": lambda: _conv(kernel=(3, 1), padding=(0, 2)),
    "conv2d, dilation 1 by 2, padded": lambda: _conv(dilation=(1, 2), padding=2),
    "conv2d, 1 by 1, no bias": lambda: _conv(kernel=1, bias=False),
    "conv2d, depthwise, stride 2, relu6": _then(lambda: _conv(4, groups=4, stride=2), F.relu6),
    "conv2d, grouped, stride 2 by 1": lambda: _conv(groups=2, stride=(2, 1), padding=1),
    "conv2d, relu": _then(_conv, torch.relu),
    "conv2d, relu6": _then(lambda: _conv(padding=1), F.relu6),
    "conv2d, hardtanh": _then(_conv, F.hardtanh),
    "conv2d, clamp": _then(_conv, lambda x: x.clamp(-0.25, 0.75)),
    "conv_transpose2d, stride 2": lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1),
    "relu at its edge": _then(_identity, torch.relu),
    "relu6 at its edges": _then(_identity, F.relu6),
    "hardtanh at its edges": _then(_identity, F.hardtanh),
    "max_pool2d, below zero, padded": _then(_negative, lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool2d, 3 by 2, stride 2 by 1": _then(
        _layer, lambda x: F.max_pool2d(x, (3, 2), stride=(2, 1))
    ),
    "avg_pool2d, padded": _then(_layer, lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg_pool2d, 2 by 5": _then(_layer, lambda x: F.avg_pool2d(x, (2, 5))),
    "adaptive_avg_pool2d, to 2 by 2": _then(_layer, lambda x: F.adaptive_avg_pool2d(x, 2)),
    "mean, of rows": _then(_layer, lambda x: x.mean(2)),
    "add, relu": _of_two(lambda x, y: torch.relu(x + y)),
    "add, broadcast": _of_two(lambda x, y: x + y[:1, :, :1]),
    "add, of a value and itself": _then(_layer, lambda x: x + x),
    "sub, relu6": _of_two(lambda x, y: F.relu6(x - y)),
    "mul, broadcast": _of_two(lambda x, y: x * y[:, :1]),
    "cat, of three": _of_two(lambda x, y: torch.cat([x, torch.relu(y), x], 1)),
    "pad, on one side": _then(_layer, lambda x: F.pad(x, (0, 2, 1, 0))),
    "dropout in evaluation": lambda: nn.Sequential(_layer(), nn.Dropout()),
    "outputs in a dict": _then(_layer, _outputs),
}

_ON_ROWS: Final[dict[str, Callable[[], nn.Module]]] = {
    "linear, no bias": lambda: nn.Linear(16, 8, bias=False),
    "linear, relu": _then(lambda: nn.Linear(16, 8), torch.relu),
    "linear, relu6": _then(lambda: nn.Linear(16, 8), F.relu6),
}

_ON_SIGNALS: Final[dict[str, Callable[[], nn.Module]]] = {
    "conv1d, stride 2, padded": lambda: nn.Conv1d(4, 8, 3, stride=2, padding=1),
    "conv1d, dilated, grouped": lambda: nn.Conv1d(4, 8, 3, dilation=2, groups=2),
}

_GROUPS: Final = (
    (_ON_IMAGES, _IMAGES),
    (_ON_ROWS, _ROWS),
    (_ON_SIGNALS, _SIGNALS),
    ({"linear, of three dimensions": lambda: nn.Linear(16, 8)}, _DEEP),
)

#: One model for each form of an operator, by what the suite calls it.
VARIANTS: Final[dict[str, ZooModel]] = {
    name: ZooModel(name, build, ((x,),)) for group, x in _GROUPS for name, build in group.items()
}
