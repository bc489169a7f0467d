"""Random models of ordinary modules and functions, each from a seed."""

from __future__ import annotations

import random
import re
from typing import Any, Final

import torch
from attrs import evolve

from qcore.testing.fuzz.recipe import Recipe, Step, is_image

__all__ = ["linear_recipe", "random_recipe"]

# Each entry is code; {0} is the operand, {1} another of the same shape, {m} a layer of the
# constructor behind the bar; c, l, n stand for channels, last size and a random small number.
_ANY: Final = """
torch.relu({0})|F.relu6({0})|{0}.clone().relu_()|F.hardtanh({0})|{0}.clamp(-1, 1)|{0}.clamp(min=0)
torch.sigmoid({0})|torch.tanh({0})|F.silu({0})|F.gelu({0})|F.hardswish({0})|F.hardsigmoid({0})
F.leaky_relu({0}, 0.1)|F.elu({0})|F.softplus({0})|F.mish({0})|{0}.abs()|-{0}|{0} + {1}|{0} - {1}
{0} * {1}|{0} + 0.5|1 - {0}|{0} * 2|{0} / 2|{0} / ({1}.abs() + 1)|1 / ({0}.abs() + 1)
torch.exp(-{0}.abs())|torch.sqrt({0}.abs() + 1)|torch.rsqrt({0}.abs() + 1)|torch.log1p({0}.abs())
{0}.pow(2)|{0}.square()|torch.maximum({0}, {1})|torch.minimum({0}, {1})
torch.where({0} > 0, {0}, {1})|{0}.masked_fill({0} < 0, 0.0)|torch.hypot({0}, {1})
torch.sin({0})|torch.cumsum({0}, -1)|torch.cumprod({0}.clamp(-1, 1), -1)|{0}.round()|{0}.floor()
torch.softmax({0}, -1)|torch.log_softmax({0}, -1)|torch.cat([{0}, {1}], -1)
{0}.amax(-1, keepdim=True)|{0}.amax(-1)|{0}.mean(-1, keepdim=True)|{0}.sum(-1, keepdim=True)
{0}.flip(-1)|torch.roll({0}, 1, -1)|{0}[..., 1:]|{0}.chunk(2, -1)[0]|torch.stack([{0}, {1}], 1)
{0}.contiguous()|{0}.expand_as({0})|{0}.to(torch.float32)|F.normalize({0}, dim=-1)|{0}.std(-1)
F.rrelu({0})|F.threshold({0}, 0.1, 0.0)|F.softsign({0})|F.logsigmoid({0})|{0}.add_({1})
F.pad({0}, (1, 1))|F.dropout({0}, 0.5, False)
"""

_BY_RANK: Final = {
    1: "{m}({0})|nn.Linear(l, n)",
    2: """
{m}({0})|nn.Linear(l, n)
{m}(F.relu({m}({0})))|nn.Linear(l, l)
{m}({0})|nn.BatchNorm1d(l)
{m}({0})|nn.LayerNorm(l)
F.linear({0}, {m}.weight)|nn.Linear(l, n)
{0}.unsqueeze(1)
{0}.reshape(-1, 1, l)
{0}.t().t()
""",
    3: """
{m}({0})|nn.Linear(l, n)
{m}({0})|nn.Conv1d(c, n, 3, padding=1)
{m}({0})|nn.Conv1d(c, c, 3, padding='same', groups=c)
{m}({0})|nn.ConvTranspose1d(c, n, 2)
{m}({0})|nn.LayerNorm(l)
{m}({0}, {0}, {0}, need_weights=False)[0]|nn.MultiheadAttention(l, 1, batch_first=True)
F.scaled_dot_product_attention({0}, {0}, {1})
{0} @ {0}.transpose(1, 2)
torch.bmm({0}, {1}.transpose(1, 2))
{0}.transpose(1, 2)
{0}.mean(1)
{0}.flatten(1)
F.max_pool1d({0}, 2)
F.avg_pool1d({0}, 2)
F.adaptive_avg_pool1d({0}, 2)
{m}({0})|nn.PReLU()
{0}[:, -1]
""",
    4: """
{m}({0})|nn.Conv2d(c, n, 3, padding=1)
{m}({0})|nn.Conv2d(c, n, 1)
{m}({0})|nn.Conv2d(c, n, 3, stride=2, padding=1, bias=False)
{m}({0})|nn.Conv2d(c, c, 3, padding=1, groups=c)
{m}({0})|nn.Conv2d(c, n, 3, padding='same')
{m}({0})|nn.Conv2d(c, n, 3, padding=1, padding_mode='reflect')
{m}({0})|nn.Conv2d(c, n, 3, padding=1, padding_mode='circular')
{m}({0})|nn.Conv2d(c, n, 3, padding=1, padding_mode='replicate')
{m}({0})|nn.Conv2d(c, n, 3, padding=2, dilation=2)
{m}({0})|nn.Sequential(nn.Conv2d(c, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU())
{m}({0})|nn.Sequential(nn.Conv2d(c, n, 3, padding=1, bias=False), nn.BatchNorm2d(n), nn.ReLU6())
{m}({m}({0}))|nn.Conv2d(c, c, 3, padding=1)
F.conv2d({0}, {m}.weight * 0.5)|nn.Conv2d(c, n, 1)
{m}({0})|nn.ConvTranspose2d(c, n, 2, stride=2)
{m}({0})|nn.ConvTranspose2d(c, c, 3, groups=c)
{m}({0})|nn.BatchNorm2d(c)
{m}({0})|nn.GroupNorm(1, c)
{m}({0})|nn.InstanceNorm2d(c)
{m}({0})|nn.PReLU(c)
{m}({0})|nn.ReLU(inplace=True)
{m}({0})|nn.Linear(l, n)
F.max_pool2d({0}, 2)
F.max_pool2d({0}, 3, 2, 1)
F.avg_pool2d({0}, 2)
F.avg_pool2d({0}, 3, 1, 1)
F.adaptive_avg_pool2d({0}, 1)
F.adaptive_avg_pool2d({0}, 2)
F.adaptive_max_pool2d({0}, 2)
F.interpolate({0}, scale_factor=2)
F.interpolate({0}, scale_factor=2, mode='bilinear')
F.pad({0}, (1, 1, 1, 1))
F.pad({0}, (1, 1, 1, 1), mode='reflect')
torch.softmax({0}, 1)
torch.cat([{0}, {1}], 1)
torch.add(*{0}.chunk(2, 1))
{0}.split(1, 1)[0]
{0}[:, 1:]
{0}.mean((2, 3))
{0}.mean((2, 3), keepdim=True)
{0}.amax((2, 3))
{0}.flatten(1)
{0}.flatten(2)
{0}.permute(0, 2, 3, 1)
{0}.reshape(-1, c, 1, h * l)
{0}.transpose(1, 2).contiguous()
{0} * {0}.mean((2, 3), keepdim=True)
F.pixel_unshuffle({0}, 2)
""",
}

# What one model in five has besides, in the middle: {k} is a second layer of the constructor,
# whose weight is that of {m}.
_PARTS: Final = {
    1: """
{m}({0}.half()).float()|nn.Linear(l, n).half()
{m}({0}.double()).float()|nn.Linear(l, n).double()
({0}.half() * 0.5).float()
torch.tanh({0}.double()).float()
{k}(torch.relu({m}({0})))|nn.Linear(l, l)
{m}({0}) + {k}({0})|nn.Linear(l, n)
{m}({0}) + {k}({0})|nn.Linear(l, n, bias=False)
""",
    4: """
{m}({0}.half()).float()|nn.Conv2d(c, n, 3, padding=1).half()
{m}({0}.double()).float()|nn.Conv2d(c, n, 1).double()
{k}(torch.relu({m}({0})))|nn.Conv2d(c, c, 3, padding=1)
{m}({0}) + {k}({0})|nn.Conv2d(c, n, 1)
""",
}
_INTEGERS: Final = ("({0}, x + 1)", "({0}, x > 3)", "(x * 2, {0})")

_INPUTS: Final = (
    ("torch.randn(2, 4, 8, 8)",) * 4
    + ("torch.randn(1, 3, 16, 16)", "torch.randn(2, 6, 8)", "torch.randn(1, 5, 12)")
    + ("torch.randn(2, 8)", "torch.randn(4, 16)", "torch.randn(8)", "torch.randint(0, 10, (2, 6))")
)
_OUTPUTS: Final = ("({0}, {1})", "({0}, None, {1})", "{{'a': {0}, 'b': [{1}]}}", "[{0}, ({1},)]")
_LARGEST: Final = 1 << 14


class _Builder:
    """Adds statements that run, and keeps their values."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.inputs: dict[str, str] = {}
        self.steps: list[Step] = []
        self.values: dict[str, torch.Tensor] = {}

    def add_input(self, code: str) -> None:
        name = f"x{len(self.inputs)}" if self.inputs else "x"
        self.inputs[name] = code
        self.values[name] = _evaluated(code, {})
        if not self.values[name].is_floating_point():
            self.add("{m}({0})|nn.Embedding(10, 8)", name)

    def add(self, entry: str, operand: str) -> bool:
        code, _, layer = entry.partition("|")
        value = self.values[operand]
        same = [n for n, v in self.values.items() if v.shape == value.shape]
        shape = (*[1] * (4 - value.dim()), *value.shape)
        sizes = {"l": shape[-1], "h": shape[-2], "n": self.random.choice((1, 3, 4, 5, 8))}
        sizes["c"] = value.shape[1] if value.dim() > 1 else 1
        operands = (operand, self.random.choice(same))
        layers = {}
        if layer:
            name = f"layer{len(self.steps)}"
            layers[name] = _with_sizes(layer, sizes)
            if "{k}" in code:
                layers |= _tied(name, layers[name])
            code = code.replace("{m}", f"self.{name}").replace("{k}", f"self.{name}b")
        step = Step(f"v{len(self.steps)}", _with_sizes(code, sizes), operands, layers)
        if "{1}" not in code:
            step = Step(step.name, step.code, operands[:1], layers)
        try:
            result = self._run(step)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
            return False
        if not 0 < result.numel() <= _LARGEST or not bool(result.isfinite().all()):
            return False
        self.steps.append(step)
        self.values[step.name] = result
        return True

    def _run(self, step: Step) -> torch.Tensor:
        values = {name: self.values[name].clone() for name in step.operands}
        layers = torch.nn.Module()
        for name, code in step.layers.items():
            exec(f"self.{name} = {code}", {**_NAMES, "self": layers})
        scope = {**values, "self": layers.eval()}
        result = _evaluated(step.code.format(*step.operands), scope)
        if not isinstance(result, torch.Tensor) or result.dtype is not torch.float32:
            raise TypeError(step.code)
        return result

    def grow(self) -> None:
        """Add one statement to a value that was made lately."""
        operand = self._recent()
        rank = self.values[operand].dim()
        chosen = _BY_RANK.get(rank, "").strip().splitlines()
        general = _ANY.replace("\n", "|").strip("|").split("|")
        is_special = chosen and self.random.random() < 0.6
        self.add(self.random.choice(chosen if is_special else general), operand)

    def grow_part(self) -> None:
        """Add a statement in another type, or with two layers of one weight."""
        operand = self._recent()
        rank = self.values[operand].dim()
        chosen = (_PARTS[1] + _PARTS.get(rank, "") * 2).split("\n")
        self.add(self.random.choice([entry for entry in chosen if entry]), operand)

    def _recent(self) -> str:
        names = [n for n, value in self.values.items() if value.is_floating_point()]
        return names[max(0, len(names) - 1 - int(self.random.expovariate(1.2)))]

    def recipe(self) -> Recipe:
        """Return the model with everything that nothing else reads as an output."""
        read = {name for step in self.steps for name in step.operands}
        free = [step.name for step in self.steps if step.name not in read][-2:]
        output = self.random.choice(_OUTPUTS) if len(free) == 2 else "{0}"
        return Recipe(self.seed, self.inputs, tuple(self.steps), tuple(free), output)


_NAMES: Final = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}


def _tied(name: str, layer: str) -> dict[str, str]:
    """Return a second layer that has the weight of the first."""
    return {f"{name}b": layer, f"{name}b.weight": f"self.{name}.weight"}


def _evaluated(code: str, scope: dict[str, Any]) -> Any:
    with torch.no_grad():
        return eval(code, {**_NAMES, **scope})


def _with_sizes(code: str, sizes: dict[str, int]) -> str:
    return re.sub(r"(?<![\w.'])([clnh])(?![\w('])", lambda m: str(sizes[m.group(1)]), code)


def random_recipe(seed: int) -> Recipe:
    """Draw a model of 2 to 12 ordinary modules and functions.

    Args:
        seed: The same seed gives the same model.

    Returns:
        The model, with samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = _Builder(seed)
        draw = builder.random
        builder.add_input(draw.choice(_INPUTS))
        if draw.random() < 0.2:
            builder.add_input(draw.choice(_INPUTS))
        ranks = [value.dim() for value in builder.values.values()]
        builder.add(draw.choice(_BY_RANK[ranks[0]].strip().splitlines()), "x")
        first = len(builder.steps)
        wanted = first + draw.randint(2, 11)
        parts = _has_parts(seed)
        for _ in range(10 * wanted):
            if parts and len(builder.steps) >= (first + wanted) // 2:
                builder.grow_part()
                parts = False
            elif len(builder.steps) < wanted:
                builder.grow()
        recipe = builder.recipe()
    if _has_parts(seed) and len(recipe.inputs) == 1 and "randint" in recipe.inputs["x"]:
        recipe = evolve(recipe, outputs=recipe.outputs[:1], output=draw.choice(_INTEGERS))
    image = any(map(is_image, recipe.inputs.values()))
    return evolve(
        recipe,
        by_keyword=draw.random() < 0.1,
        channels_last=image and draw.random() < 0.1,
        dynamic=len(recipe.inputs) == 1 and "(2, " in recipe.code and draw.random() < 0.15,
    ).trimmed()


def _has_parts(seed: int) -> bool:
    """Say whether a model has parts of other types, tied weights or outputs of integers."""
    return random.Random(f"parts {seed}").random() < 0.2


def linear_recipe(seed: int) -> Recipe:
    """Draw a model of linear layers and embeddings of odd sizes, for ``quantize_``.

    Args:
        seed: The same seed gives the same model.

    Returns:
        The model, with samples.
    """
    draw = random.Random(seed)
    width = draw.choice((1, 2, 8, 24, 32, 33, 64, 96))
    tokens = draw.random() < 0.4
    shape = draw.choice(("", "3, ", "2, 5, "))
    inputs = {"x": "torch.randint(0, 20, (2, 5))" if tokens else f"torch.randn({shape}{width})"}
    steps: list[Step] = []
    last = "x"

    def add(code: str, **layers: str) -> None:
        nonlocal last
        steps.append(Step(f"v{len(steps)}", code, (last,), layers))
        last = steps[-1].name

    if tokens:
        add("self.embedding({0})", embedding=f"nn.Embedding(20, {width})")
    table = width
    tied = ""
    for index in range(draw.randint(1, 5)):
        wider = draw.choice((1, 2, 7, 16, 32, 64, 100))
        bias = draw.random() < 0.5
        if tied == f"{width}" and draw.random() < 0.5:
            add("self.shared({0})")
            continue
        name = "shared" if wider == width and not tied else f"linear{index}"
        tied = tied or (f"{width}" if name == "shared" else "")
        add(f"self.{name}({{0}})", **{name: f"nn.Linear({width}, {wider}, bias={bias})"})
        width = wider
        function = draw.choice(("torch.relu({0})", "F.gelu({0})", "{0} + 0.5", "torch.tanh({0})"))
        add(function)
        if draw.random() < 0.3:
            add(f"self.norm{index}({{0}})", **{f"norm{index}": f"nn.LayerNorm({width})"})
    if not _has_parts(seed):
        return Recipe(seed, inputs, tuple(steps), (last,))
    middle = last
    part = draw.choice(("tied", "half", "double"))
    if part != "tied":
        layer = f"nn.Linear({width}, 16).{part}()"
        add(f"self.other({{0}}.{part}()).float()", other=layer)
    elif tokens:
        head = {"head": f"nn.Linear({table}, 20)", "head.weight": "self.embedding.weight"}
        add(f"self.head({{0}}[..., :1].expand(-1, -1, {table}))", **head)
    else:
        pair = {"pair": f"nn.Linear({width}, {width})"}
        add("self.pairb(torch.relu(self.pair({0})))", **pair, **_tied("pair", pair["pair"]))
    return Recipe(
        seed,
        inputs,
        tuple(steps),
        (last, middle),
        draw.choice(("{0}", *_OUTPUTS)),
        by_keyword=draw.random() < 0.3,
        dynamic=(tokens or shape == "3, ") and draw.random() < 0.5,
    ).trimmed()
