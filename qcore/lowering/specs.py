"""The arguments of a program: what it takes, and whether what was given fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = [
    "TensorSpec",
    "bounds_of",
    "check_values",
    "describe_specs",
    "held_tensors",
    "program_specs",
    "spec_of",
    "user_input_names",
]


@attrs.frozen
class TensorSpec:
    """One input or output of a program.

    Attributes:
        name: The argument's name in the captured graph.
        shape: Size of every dimension; None for a dynamic one. Empty for a number.
        dtype: A ``torch.dtype``, or ``int``, ``float`` or ``bool`` for a plain number.
        bounds: Smallest and largest size of every dimension; None as the largest means no limit.
        value: For a number, the value the program was lowered for: a graph bakes numbers in.
        symbols: The name of every dynamic size, where it has one; equal names are one size.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: Any
    bounds: tuple[tuple[int, int | None], ...] = attrs.field(default=(), repr=False)
    value: Any = None
    symbols: tuple[str | None, ...] = attrs.field(default=(), repr=False, eq=False)

    def __str__(self) -> str:
        if self.is_number:
            return f"{self.name}: {self.kind}"
        return f"{self.name}: {_tensor_text(self.dtype, self.shape, self.bounds)}"

    @property
    def is_number(self) -> bool:
        """Whether the argument is a plain value instead of a tensor."""
        return isinstance(self.dtype, type)

    @property
    def kind(self) -> str:
        """The type as text, with the value of a number."""
        return f"{self.dtype.__name__} {self.value!r}" if self.is_number else str(self.dtype)


def _tensor_text(
    dtype: Any,
    shape: Sequence[int | None],
    bounds: Sequence[tuple[int, int | None]] = (),
) -> str:
    sizes = []
    for index, size in enumerate(shape):
        if size is not None:
            sizes.append(str(size))
            continue
        low, high = bounds[index] if index < len(bounds) else (0, None)
        sizes.append(f"{low}..{'' if high is None else high}")
    return f"{str(dtype).removeprefix('torch.')}[{', '.join(sizes)}]"


def describe_specs(specs: Sequence[TensorSpec]) -> str:
    """Return arguments as one line, such as ``x: float32[1, 3, 8, 8]``."""
    return "; ".join(str(spec) for spec in specs) or "nothing"


def spec_of(name: str, value: Any, bound_of: Callable[[Any], tuple[int, int | None]]) -> TensorSpec:
    """Describe a graph's argument by the fake tensor or the constant that the graph records for it.

    ``bound_of`` gives the smallest and the largest size of a symbolic dimension.
    """
    import torch

    from qcore.graph import size_symbols

    if not isinstance(value, torch.Tensor):
        return TensorSpec(name=name, shape=(), dtype=type(value), value=value)
    fixed = [size if isinstance(size, int) else None for size in value.shape]
    bounds = [
        (int(size), int(size)) if isinstance(size, int) else bound_of(size) for size in value.shape
    ]
    symbols = size_symbols(value)
    return TensorSpec(name, tuple(fixed), value.dtype, tuple(bounds), symbols=symbols)


def user_input_names(program: ExportedProgram) -> set[str]:
    """Return the names of the placeholders that stand for the model's arguments.

    Args:
        program: The exported program.

    Returns:
        The names, those of numbers captured as constants included.
    """
    from torch.export.graph_signature import InputKind

    specs = program.graph_signature.input_specs
    return {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}


def held_tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the tensors that a program holds.

    Args:
        program: The exported program.

    Returns:
        Its parameters, buffers and constants, by the names of the placeholders that stand for them.
    """
    signature, held = program.graph_signature, {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {name: held[target] for name, target in names.items()}


def bounds_of(ranges: Any, size: Any) -> tuple[int, int | None]:
    """Return the smallest and largest size of a symbolic dimension; None where none is largest."""
    known = ranges.get(size.node.expr)
    if known is None:
        known = size.node.shape_env.bound_sympy(size.node.expr)
    upper = known.upper
    return int(known.lower), int(upper) if upper.is_Integer and upper < 2**62 else None


def program_specs(
    exported: ExportedProgram,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Describe what a program takes and returns.

    Args:
        exported: The exported model.

    Returns:
        Its inputs and its outputs, flattened; for ``inputs`` and ``outputs`` of a
        ``LoweredProgram``, whose ``structure`` is ``exported.call_spec.out_spec``.
    """
    from torch.export.graph_signature import OutputKind
    from torch.fx import Node

    signature, ranges = exported.graph_signature, exported.range_constraints

    def spec(name: str, value: Any) -> TensorSpec:
        return spec_of(name, value, lambda size: bounds_of(ranges, size))

    users = user_input_names(exported)
    nodes = list(exported.graph.nodes)
    inputs = tuple(
        spec(node.name, node.meta["val"])
        for node in nodes
        if node.op == "placeholder" and node.name in users
    )
    kinds = [output.kind is OutputKind.USER_OUTPUT for output in signature.output_specs]
    values = [v for v, is_user in zip(nodes[-1].args[0], kinds, strict=True) if is_user]
    outputs = tuple(
        spec(value.name, value.meta["val"])
        if isinstance(value, Node)
        else spec(f"output_{index}", value)
        for index, value in enumerate(values)
    )
    return inputs, outputs


def check_values(
    specs: Sequence[TensorSpec],
    values: Sequence[Any],
    *,
    what: str,
    error: type[Exception],
) -> None:
    """Raise ``error`` unless flat arguments fit; it names the first that does not."""
    from qcore.graph import differing_sizes

    if len(specs) != len(values):
        raise error(
            f"{len(values)} {what}s were given, the model takes {len(specs)}: "
            f"{describe_specs(specs)}. Pass one value for each, in this order."
        )
    for spec, value in zip(specs, values, strict=True):
        problem = _mismatch(spec, value)
        if problem:
            raise error(f"{what} {spec.name!r} does not fit: {problem}")
    tensors = [(s, v) for s, v in zip(specs, values, strict=True) if not s.is_number]
    if differing := differing_sizes((s.name, s.symbols, v.shape) for s, v in tensors):
        raise error(f"{what}s do not fit together: {differing}")


def _mismatch(spec: TensorSpec, value: Any) -> str | None:
    import torch

    if spec.is_number:
        if type(value) is spec.dtype and value == spec.value:
            return None
        return (
            f"got {value!r}, expected {spec.kind}. The graph was captured with this value; "
            "capture and lower the model again for another one, or make it a tensor."
        )
    expected = _tensor_text(spec.dtype, spec.shape, spec.bounds)
    if not isinstance(value, torch.Tensor):
        return (
            f"got {type(value).__module__}.{type(value).__name__}, expected a tensor {expected}. "
            "Convert it with torch.as_tensor()."
        )
    given = _tensor_text(value.dtype, value.shape)
    if value.dtype != spec.dtype:
        return f"got {given}, expected {expected}. Convert it with .to({spec.dtype})."
    if value.dim() != len(spec.shape):
        return (
            f"got {given} with {value.dim()} dimensions, expected {expected} with "
            f"{len(spec.shape)}. Reshape it; a single sample needs its batch dimension."
        )
    for index, size in enumerate(value.shape):
        low, high = spec.bounds[index] if index < len(spec.bounds) else (0, None)
        fixed = spec.shape[index]
        if (
            (fixed is not None and size != fixed)
            or size < low
            or (high is not None and size > high)
        ):
            return (
                f"got {given}, expected {expected}: dimension {index} is {size}. Pass that shape, "
                "or capture and lower the model with dynamic_shapes that cover this size."
            )
    return None
