"""The zoo: small models, each with one thing that backends get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import nn

__all__ = ["ZOO", "Fn", "ZooModel", "chain"]

Inputs = tuple[Any, ...]


class Fn(nn.Module):  # type: ignore[misc]
    """A model made of layers and a function over them.

    Args:
        function: Gets this module, which has the layers as attributes, and the model's inputs.
        **layers: The layers by name.
    """

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        """Apply the function."""
        return self.function(self, *inputs)


@frozen
class ZooModel:
    """A model of the zoo.

    Attributes:
        name: What the suite calls it.
        build: Builds the model; the suite seeds the generator before it does.
        samples: Inputs, positional; the first is captured with, all are calibrated with.
        dynamic_shapes: As ``torch.export.export`` takes it, for sizes that vary.
        other_sizes: Inputs of other sizes, where sizes vary.
    """

    name: str
    build: Callable[[], nn.Module]
    samples: tuple[Inputs, ...]
    dynamic_shapes: Any = None
    other_sizes: Inputs = ()

    def module(self) -> nn.Module:
        """Build the model in evaluation mode, with the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _integers(*shape: int, high: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


_IMAGE: Final = _randn(1, 4, 8, 8)
_ROWS: Final = _randn(2, 16)
_IDS: Final = _integers(1, 6, high=10)


def _conv(inputs: int = 4, outputs: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def _two_users(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    return torch.relu(y) + y


def _chained_views(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.first(x)
    for _ in range(8):
        y = y.view(4, 4, 2).permute(1, 0, 2).reshape(2, 16)
    return m.last(y.unsqueeze(0).squeeze(0))


def _integer_tensors(m: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    positions = ids + 1
    return m.head(m.table(positions)), positions * 2


def _in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y += 0.5
    y.relu_()
    y.mul_(2.0)
    return m.last(y)


def _attention(m: Any, x: torch.Tensor) -> torch.Tensor:
    query, key, value = m.query(x), m.key(x), m.value(x)
    scores = torch.matmul(query, key.transpose(-2, -1)) * 0.25
    return m.out(torch.matmul(scores.softmax(-1), value)) + x


class _Branches(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.yes, self.no = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(
            x.sum() > 0,
            lambda y: torch.relu(self.yes(y)),
            lambda y: self.no(y),
            (self.stem(x),),
        )


def _linears(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(16, 16) for name in names}


def chain(length: int) -> ZooModel:
    """Return a chain of linear layers with relu between them.

    Args:
        length: How many linear layers.

    Returns:
        The model; its annotation should cost time in proportion to the length.
    """

    def build() -> nn.Module:
        return nn.Sequential(*(f() for _ in range(length) for f in (_small_linear, nn.ReLU)))

    return ZooModel(f"chain of {length}", build, ((_randn(1, 4),),))


def _small_linear() -> nn.Module:
    return nn.Linear(4, 4)


_MODELS: Final = (
    ZooModel("linear", lambda: nn.Sequential(nn.Linear(16, 8)), ((_ROWS,),)),
    ZooModel(
        "conv_bn_relu",
        lambda: nn.Sequential(_conv(), nn.BatchNorm2d(8), nn.ReLU()),
        ((_IMAGE,),),
    ),
    ZooModel("conv_relu6", lambda: nn.Sequential(_conv(), nn.ReLU6()), ((_IMAGE * 4,),)),
    ZooModel(
        "residual_add",
        lambda: Fn(lambda m, x: m.last(m.conv(x) + x), conv=_conv(4, 4), last=_conv(4, 4)),
        ((_IMAGE,),),
    ),
    ZooModel(
        "shared_weights",
        lambda: Fn(lambda m, x: m.layer(torch.relu(m.layer(x))), **_linears("layer")),
        ((_ROWS,),),
    ),
    ZooModel("conv_with_two_users", lambda: Fn(_two_users, conv=_conv()), ((_IMAGE,),)),
    ZooModel(
        "cat_of_mixed_ranges",
        lambda: Fn(lambda m, x: torch.cat([m.a(x), m.b(x * 8.0), x], 1), a=_conv(), b=_conv()),
        ((_IMAGE,),),
    ),
    ZooModel("chained_views", lambda: Fn(_chained_views, **_linears("first", "last")), ((_ROWS,),)),
    ZooModel(
        "depthwise",
        lambda: nn.Sequential(_conv(4, 4, groups=4), nn.Conv2d(4, 8, 1)),
        ((_IMAGE,),),
    ),
    ZooModel(
        "embedding",
        lambda: nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 8)),
        ((_IDS,),),
    ),
    ZooModel(
        "attention",
        lambda: Fn(_attention, **_linears("query", "key", "value", "out")),
        ((_randn(1, 6, 16),),),
    ),
    ZooModel("cond", _Branches, ((_ROWS.abs(),), (-_ROWS.abs(),))),
    ZooModel(
        "dynamic_batch",
        lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)),
        ((_ROWS,),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
        other_sizes=(torch.cat([_ROWS, _ROWS, _ROWS[:1]]),),
    ),
    ZooModel("no_op", lambda: nn.Sequential(nn.Dropout(), nn.Identity()), ((_ROWS,),)),
    ZooModel("in_place", lambda: Fn(_in_place, conv=_conv(), last=_conv(8, 4)), ((_IMAGE,),)),
    ZooModel(
        "integer_tensors",
        lambda: Fn(_integer_tensors, table=nn.Embedding(12, 16), head=nn.Linear(16, 8)),
        ((_IDS,),),
    ),
    ZooModel(
        "three_linears",
        lambda: Fn(
            lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
            **_linears("a", "b", "c"),
        ),
        ((_ROWS,),),
    ),
)

#: The models by name.
ZOO: Final = {model.name: model for model in _MODELS}
