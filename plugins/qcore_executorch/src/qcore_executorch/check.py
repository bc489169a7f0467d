"""Whether a program computes what its converted model computes, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from qcore.lowering import TensorSpec
from qcore.lowering.rounding import Rounding, run_disturbed, step_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Reference", "example_inputs"]


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
class Reference(Rounding):
    """What the converted model returns for inputs, and how far rounding moves that.

    Attributes:
        inputs: The flat arguments.
    """

    inputs: list[Any]

    @classmethod
    def of(cls, program: ExportedProgram, inputs: list[Any]) -> Reference:
        """Run the converted model.

        Args:
            program: The converted model; left as it is.
            inputs: The flat arguments.

        Returns:
            The reference.
        """
        return cls(
            lambda seed: _run(program, inputs, seed),
            _run(program, inputs, None),
            _output_steps(program),
            inputs,
        )


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
    results = run_disturbed(program.graph_module, seed, *values, enable_io_processing=False)
    kinds = [output.kind for output in program.graph_signature.output_specs]
    return [v for v, kind in zip(results, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _output_steps(program: ExportedProgram) -> list[float]:
    *_, output = program.graph.nodes
    values: Any = output.args[0]
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    users = [v for v, kind in zip(values, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
    return [step_of(value) for value in users]
