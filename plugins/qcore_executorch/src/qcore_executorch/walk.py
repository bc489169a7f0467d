"""Executing a lowered graph node by node, delegates by a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from qcore_executorch.compat.executorch import calls_delegate

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["Execute", "initial_state", "walk"]

#: Takes a delegate's ``LoweredBackendModule`` and its arguments, returns its results.
Execute = Callable[[Any, Sequence[Any]], list[Any]]


class _Walker(torch.fx.Interpreter):  # type: ignore[misc]
    """Interprets a graph and the bodies of its conditionals and loops."""

    def __init__(self, graph: GraphModule, execute: Execute | None) -> None:
        super().__init__(graph)
        self._execute = execute

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one node."""
        if self._execute and calls_delegate(target):
            return self._execute(args[0], args[1:])
        if target is torch.ops.higher_order.cond:
            predicate, if_true, if_false, operands = args
            return self._body(if_true if bool(predicate) else if_false, operands)
        if target is torch.ops.higher_order.while_loop:
            condition, body, carried, constants = args
            while bool(_only(self._body(condition, (*carried, *constants)))):
                carried = self._body(body, (*carried, *constants))
            return carried
        return super().call_function(target, args, kwargs)

    def _body(self, graph: GraphModule, operands: Sequence[Any]) -> Any:
        return _Walker(graph, self._execute).run(*operands)


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


def initial_state(program: ExportedProgram) -> dict[str, Any]:
    """Return the tensors that a program holds, by name.

    Args:
        program: The graph after partitioning.

    Returns:
        Parameters, buffers and constants.
    """
    return {**program.state_dict, **program.constants}


def walk(
    program: ExportedProgram,
    state: dict[str, Any],
    inputs: Sequence[Any],
    execute: Execute | None = None,
) -> tuple[Any, ...]:
    """Execute a lowered graph in this process.

    Args:
        program: The graph after partitioning, with delegates in it.
        state: The tensors that it holds; buffers that it writes are replaced.
        inputs: The flat arguments: tensors and plain numbers.
        execute: Runs the delegates; None where they are operators as others.

    Returns:
        The flat outputs.
    """
    signature, given = program.graph_signature, iter(inputs)
    arguments = [
        next(given) if spec.kind is InputKind.USER_INPUT else state[spec.target]
        for spec in signature.input_specs
    ]
    with torch.no_grad():
        values = _Walker(program.graph_module, execute).run(*arguments)
    outputs = list(zip(values, signature.output_specs, strict=True))
    for value, spec in outputs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            state[spec.target] = value
    return tuple(value for value, spec in outputs if spec.kind is OutputKind.USER_OUTPUT)
