"""Whether a program computes what its converted model computes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from qcore.compat.torch import TRACING
from qcore.lowering import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Reference", "example_inputs"]

_DISTURBED: Final = 4
"""Disturbed runs of the converted model."""

_AMPLITUDE: Final = 0.1
"""Largest disturbance before each rounding, in steps of that quantization.

Integer kernels round otherwise where a value lies close to the middle between two steps. In
EfficientNet-Lite0 that is one value in 800; this moves one in 20.
"""

_MARGIN: Final = 3.0
"""A difference may be this many times as large as those of the disturbed runs together."""

_STEPS: Final = 2.0
"""Steps of an output's own quantization by which it may differ whatever the disturbed runs say."""

_FLOAT_MARGIN: Final = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Share of an output's largest value by which float kernels may differ, where it is not 1e-3."""


def _quantizing() -> dict[Any, Callable[..., torch.Tensor]]:
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
    """Runs a converted model, moving each value by less than a step before it is rounded."""

    def __init__(self, program: ExportedProgram, seed: int | None) -> None:
        super().__init__(program.graph_module)
        self._random = None if seed is None else torch.Generator().manual_seed(seed)
        self._steps = _quantizing()

    def run(self, *args: Any, **options: Any) -> Any:
        # While another thread traces, torch's interpreter writes into what that hands on.
        with TRACING:
            return super().run(*args, **options)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        step = self._steps.get(target)
        if step is not None and self._random is not None:
            value, *rest = args
            noise = torch.rand(value.shape, generator=self._random) * 2 - 1
            moved = value + (noise * _AMPLITUDE * step(value, *rest)).to(value.dtype)
            args = (moved, *rest)
        return super().call_function(target, args, kwargs)


def example_inputs(program: ExportedProgram, inputs: Sequence[TensorSpec]) -> list[Any]:
    """Return the flat arguments to execute a program on.

    Args:
        program: The converted model.
        inputs: What it takes, for the case that it was captured without its inputs.

    Returns:
        The inputs that it was captured with, or random ones.
    """
    if program.example_inputs is None:
        random = torch.Generator().manual_seed(0)
        return [_drawn(spec, random) for spec in inputs]
    args, kwargs = program.example_inputs
    structure = program.call_spec.in_spec
    if kwargs and structure is not None:
        names = structure.child(1).context
        kwargs = {name: kwargs[name] for name in names}
    leaves: list[Any] = tree_leaves((args, kwargs))
    return leaves


def _drawn(spec: TensorSpec, random: torch.Generator) -> Any:
    if spec.is_number:
        return spec.value
    sizes = [low for low, _ in spec.bounds]
    if spec.dtype.is_floating_point:
        return torch.randn(sizes, generator=random).to(spec.dtype)
    return torch.randint(0, 2, sizes, generator=random).to(spec.dtype)


@attrs.frozen
class Reference:
    """What the converted model returns for inputs, and how far rounding moves that.

    Attributes:
        program: The converted model.
        inputs: The flat arguments.
        expected: The flat outputs.
        steps: The step of each output that is a dequantized value; 0 for the others.
    """

    program: ExportedProgram = attrs.field(repr=False)
    inputs: list[Any]
    expected: list[Any]
    steps: list[float]

    @classmethod
    def of(cls, program: ExportedProgram, inputs: list[Any]) -> Reference:
        """Run the converted model.

        Args:
            program: The converted model; left as it is.
            inputs: The flat arguments.

        Returns:
            The reference.
        """
        return cls(program, inputs, _run(program, inputs, None), _output_steps(program))

    @cached_property
    def disturbed(self) -> list[list[Any]]:
        """The flat outputs of each disturbed run; none where nothing is rounded."""
        quantizing = _quantizing()
        if not any(node.target in quantizing for node in self.program.graph.nodes):
            return []
        return [_run(self.program, self.inputs, seed) for seed in range(_DISTURBED)]

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
        for index, (expected, actual) in enumerate(zip(self.expected, outputs, strict=True)):
            which = f"output {index}: " if len(outputs) > 1 else ""
            if not isinstance(expected, torch.Tensor):
                if expected != actual and not _is_tensor_of(actual, expected):
                    return f"{which}{actual!r} in place of {expected!r}"
                continue
            if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
                return f"{which}{_kind(actual)} in place of {_kind(expected)}"
            if actual.dtype != expected.dtype:
                return f"{which}{actual.dtype} in place of {expected.dtype}"
            # Few programs need more than the first comparison, which costs no disturbed runs.
            if _off(expected, actual, [], self.steps[index]) and _off(
                expected, actual, [run[index] for run in self.disturbed], self.steps[index]
            ):
                return which + _distance(expected, actual)
        return ""


def _run(program: ExportedProgram, inputs: Sequence[Any], seed: int | None) -> list[Any]:
    tensors = {**program.constants, **program.state_dict}
    mutates = any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in program.graph.nodes
    )
    given = iter(inputs)
    values = []
    for spec in program.graph_signature.input_specs:
        is_input = spec.kind is InputKind.USER_INPUT
        value = next(given) if is_input else tensors[spec.target]
        is_fixed = spec.kind is InputKind.PARAMETER or not isinstance(value, torch.Tensor)
        values.append(value.clone() if mutates and not is_fixed else value)
    with torch.no_grad():
        results = _Disturbed(program, seed).run(*values, enable_io_processing=False)
    kinds = [output.kind for output in program.graph_signature.output_specs]
    return [v for v, kind in zip(results, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _output_steps(program: ExportedProgram) -> list[float]:
    *_, output = program.graph.nodes
    values: Any = output.args[0]
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    users = [v for v, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
    return [_step(value) for value in users]


def _step(value: Any) -> float:
    if isinstance(value, Node) and "dequantize_per_tensor.default" in str(value.target):
        return float(value.args[1])
    return 0.0


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
    noise = (signal - actual.double().nan_to_num(0, 0, 0)).pow(2).sum()
    ratio = 10 * torch.log10(signal.pow(2).sum().clamp(min=1e-30) / noise.clamp(min=1e-30))
    return f"{float(ratio):.0f} dB to the converted model"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _is_tensor_of(value: Any, number: Any) -> bool:
    """Say whether a runtime returned a number as a tensor."""
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.item() == number
