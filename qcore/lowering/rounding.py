"""Whether a program computes what its converted model computes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, Final

import attrs
import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from qcore.compat.torch import TRACING

__all__ = ["Rounding", "run_disturbed", "sqnr_db", "step_of"]

_DISTURBED: Final = (2, 4, 32)
"""Disturbed runs of the converted model, and how many where a program differs from these.

What lies in the middle between two steps, such as the mean of integers, is rounded to either side:
of 16 such values one goes the same way in each of four runs.
"""

_AMPLITUDE: Final = 0.1
"""Largest disturbance before each rounding, in steps of that quantization.

Integer kernels round otherwise where a value lies close to the middle between two steps. In
EfficientNet-Lite0 that is one value in 800; this moves one in 20.
"""

_FLOAT_NOISE: Final = 4.0
"""Largest disturbance of what a float operator computes, in units of the last place.

Kernels sum in other orders. What is left of a difference of equal values, such as the mean of a
norm, is nothing else.
"""

_MARGIN: Final = 3.0
"""A difference may be this many times as large as those of the disturbed runs together."""

_STEPS: Final = 2.0
"""Steps of an output's own quantization by which it may differ whatever the disturbed runs say."""

_FLOAT_MARGIN: Final = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Share of an output's largest value by which float kernels may differ, where it is not 1e-3."""


def sqnr_db(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return the ratio of signal to quantization noise.

    Args:
        reference: The signal.
        output: The same with noise.

    Returns:
        The ratio in dB; 300 where there is no noise.
    """
    signal = reference.detach().double().pow(2).sum().clamp(min=1e-30)
    noise = (reference.detach().double() - output.detach().double()).pow(2).sum()
    return float(10 * torch.log10(signal / noise.clamp(min=1e-30 * float(signal))))


def _rounding_operators() -> dict[Any, Callable[..., torch.Tensor]]:
    """Return operators that round, with how to find the step of each value they round."""
    operators = torch.ops.quantized_decomposed
    whole: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
        "quantize_per_tensor": ("default tensor tensor2", lambda x, scale, *_: scale),
        "quantize_per_token": ("default", lambda x, scale, *_: scale),
        "quantize_per_channel": (
            "default",
            lambda x, scale, zero, axis, *_: scale.reshape(
                [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
            ),
        ),
    }
    steps = {
        getattr(getattr(operators, name), overload): step
        for name, (overloads, step) in whole.items()
        if hasattr(operators, name)
        for overload in overloads.split()
        if hasattr(getattr(operators, name), overload)
    }
    affine = getattr(getattr(torch.ops, "torchao", None), "quantize_affine", None)
    if affine is not None:
        steps[affine.default] = _affine_step
    return steps


def _affine_step(x: torch.Tensor, block: Sequence[int], scale: torch.Tensor, *_: Any) -> Any:
    sizes = [size // width for size, width in zip(x.shape, block, strict=True)]
    for axis, width in enumerate(block):
        scale = scale.reshape(sizes) if axis == 0 else scale
        scale = scale.repeat_interleave(width, axis)
    return scale


class _Disturbed(Interpreter):  # type: ignore[misc]
    """Runs a converted model, moving each value a little, and most before it is rounded."""

    def __init__(self, model: GraphModule, seed: int | None) -> None:
        super().__init__(model)
        self._random = None if seed is None else torch.Generator().manual_seed(seed)
        self._steps = _rounding_operators()
        affine = getattr(getattr(torch.ops, "torchao", None), "dequantize_affine", None)
        self._exact = {affine.default} if affine is not None else set()

    def run(self, *args: Any, **options: Any) -> Any:
        # While another thread traces, torch's interpreter writes into what that hands on.
        with TRACING:
            return super().run(*args, **options)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        step = self._steps.get(target)
        if step is not None and self._random is not None:
            value, *rest = args
            width = _AMPLITUDE * step(value, *rest)
            args = (value + (self._noise(value) * width).to(value.dtype), *rest)
        result = super().call_function(target, args, kwargs)
        if self._random is None or not _computes(target) or not isinstance(result, torch.Tensor):
            return result
        # What integers stand for is the same everywhere, and a language model is made of them.
        if target in self._exact:
            return result
        if not result.is_floating_point():
            return result
        relative = _FLOAT_NOISE * torch.finfo(result.dtype).eps
        return result.addcmul(result, self._noise(result).to(result.dtype), value=relative)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        """Return values from -1 to 1: a piece of a table, for to draw them takes most of a run."""
        count, table = like.numel(), _noise_table()
        start = int(torch.randint(table.numel(), (), generator=self._random))
        if start + count <= table.numel():
            return table[start : start + count].view(like.shape)
        repeats = -(-(start + count) // table.numel())
        return table.repeat(repeats)[start : start + count].view(like.shape)


@cache
def _noise_table() -> torch.Tensor:
    # An odd length: values a power of two apart get different ones where it begins again.
    return torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _computes(target: Any) -> bool:
    """Say whether an operator gives a new value, which shares its memory with no other."""
    returned: Any = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
    return len(returned) == 1 and returned[0].alias_info is None


def run_disturbed(model: GraphModule, seed: int | None, *inputs: Any, **options: Any) -> Any:
    """Run a converted model, and move what it rounds a little before it does.

    Args:
        model: The converted model; left as it is.
        seed: Of the disturbance; ``None`` runs the model as it is.
        *inputs: Its arguments.
        **options: What ``torch.fx.Interpreter.run`` takes beside them.

    Returns:
        What the model returns.
    """
    with torch.no_grad():
        return _Disturbed(model, seed).run(*inputs, **options)


def step_of(value: Any) -> float:
    """Return the step of a value that a graph dequantizes; 0 for another.

    Args:
        value: A node, or a constant of the graph.
    """
    if isinstance(value, Node) and "dequantize_per_tensor.default" in str(value.target):
        return float(value.args[1])
    return 0.0


@attrs.frozen
class Rounding:
    """What a converted model returns for inputs, and how far rounding moves that.

    Attributes:
        disturb: Gives the flat outputs of a disturbed run, by its seed.
        expected: The flat outputs.
        steps: The step of each output that is a dequantized value; 0 for the others.
    """

    disturb: Callable[[int], list[Any]] = attrs.field(repr=False)
    expected: list[Any]
    steps: list[float]

    @classmethod
    def of_model(cls, model: GraphModule, *inputs: Any) -> Rounding:
        """Run a converted model.

        Args:
            model: The converted model; left as it is.
            *inputs: Its arguments.

        Returns:
            What it returns, with its rounding.
        """

        def run(seed: int | None) -> list[Any]:
            leaves: list[Any] = tree_leaves(run_disturbed(model, seed, *inputs))
            return leaves

        (output,) = (node for node in model.graph.nodes if node.op == "output")
        return cls(run, run(None), [step_of(value) for value in tree_leaves(output.args[0])])

    @cached_property
    def _runs(self) -> list[list[Any]]:
        return []

    def disturbed(self, count: int) -> list[list[Any]]:
        """Return the flat outputs of so many disturbed runs."""
        self._runs.extend(self.disturb(seed) for seed in range(len(self._runs), count))
        return self._runs[:count]

    def difference(self, outputs: Sequence[Any]) -> str:
        """Say how a program's outputs differ from the converted model's, beyond rounding.

        A value is judged by what the same value does in the disturbed runs; so many values may be
        off as are in one disturbed run when the others judge it. Integers and booleans are equal,
        then, unless the rounding of something they are decided by moves them.

        Args:
            outputs: The program's flat outputs.

        Returns:
            The symptom; empty where they agree.
        """
        if len(outputs) != len(self.expected):
            return f"{len(outputs)} outputs in place of {len(self.expected)}"
        for index, actual in enumerate(outputs):
            symptom = self.difference_at(index, actual)
            if symptom:
                return f"output {index}: {symptom}" if len(outputs) > 1 else symptom
        return ""

    def difference_at(self, index: int, actual: Any) -> str:
        """Say how one of a program's outputs differs from the converted model's.

        Args:
            index: Its place among the flat outputs.
            actual: What the program returned there.

        Returns:
            The symptom; empty where they agree.
        """
        expected, step = self.expected[index], self.steps[index]
        if not isinstance(expected, torch.Tensor):
            same = expected == actual or _is_tensor_of(actual, expected)
            return "" if same else f"{actual!r} in place of {expected!r}"
        if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
            return f"{_kind(actual)} in place of {_kind(expected)}"
        if actual.dtype != expected.dtype:
            return f"{actual.dtype} in place of {expected.dtype}"
        # Few programs need more than the first comparison, which costs no disturbed runs.
        for count in (0, *_DISTURBED):
            if not _off(expected, actual, [run[index] for run in self.disturbed(count)], step):
                return ""
        return _distance(expected, actual)


def _off(
    expected: torch.Tensor, actual: torch.Tensor, disturbed: list[torch.Tensor], step: float
) -> bool:
    floor = _STEPS * step
    if expected.is_floating_point():
        share = _FLOAT_MARGIN.get(expected.dtype, 1e-3)
        finite = expected[expected.isfinite()].abs()
        floor += share * float(finite.max()) if finite.numel() else 0.0
    noises = [_deviation(expected, run) for run in disturbed]
    allowed = 0
    for index, noise in enumerate(noises):
        others = noises[:index] + noises[index + 1 :]
        allowed = max(allowed, 2 * int((noise > _bound(noise, others, floor)).sum()))
    found = _deviation(expected, actual)
    return int((found > _bound(found, noises, floor)).sum()) > allowed


def _deviation(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """Return absolute differences; infinite where one of both is not finite and they differ."""
    if expected.is_complex():
        expected, actual = torch.view_as_real(expected), torch.view_as_real(actual)
    before, after = expected.double(), actual.double()
    distance = (before - after).abs()
    distance[(before == after) | (before.isnan() & after.isnan())] = 0.0
    return distance.nan_to_num(nan=float("inf"), posinf=float("inf"))


def _bound(like: torch.Tensor, noises: Sequence[torch.Tensor], floor: float) -> torch.Tensor:
    bound = torch.full_like(like, floor)
    if noises:
        largest = torch.stack(list(noises)).amax(0)
        finite = largest[largest.isfinite()]
        everywhere = float(finite.pow(2).mean().sqrt()) if finite.numel() else 0.0
        bound += _MARGIN * (largest + everywhere)
    return bound


def _distance(expected: torch.Tensor, actual: torch.Tensor) -> str:
    if not expected.is_floating_point():
        return f"{int((expected != actual).sum())} of {expected.numel()} values differ"
    if bool((expected.isfinite() != actual.isfinite()).any()):
        return "not finite where the converted model is, or the other way round"
    signal = expected.double().nan_to_num(0, 0, 0)
    ratio = sqnr_db(signal, actual.double().nan_to_num(0, 0, 0))
    return f"{ratio:.0f} dB to the converted model"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _is_tensor_of(value: Any, number: Any) -> bool:
    """Say whether a runtime returned a number as a tensor."""
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.item() == number
