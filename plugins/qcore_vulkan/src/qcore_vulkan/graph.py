"""The Vulkan graphs inside a ``.pte``, decoded with ExecuTorch's own schema."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from attrs import frozen

from qcore.errors import LoweringError
from qcore_executorch import import_executorch
from qcore_executorch.inspection import calls_delegate
from qcore_vulkan.compat.executorch import VALUES
from qcore_vulkan.reference import reference_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["DelegateGraph", "check_outputs", "decode", "delegate_calls"]

_SERIALIZATION: Final = "executorch.backends.vulkan.serialization"

# ``VkDataType`` -> the type that constants are stored in.
_TYPES: Final = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FLOAT16": torch.float16,
    "FLOAT32": torch.float32,
    "FLOAT64": torch.float64,
}

_HALF_OR_SINGLE: Final = (torch.float16, torch.float32)


@frozen(eq=False)
class DelegateGraph:
    """One Vulkan graph of a program.

    Attributes:
        payload: The bytes of the delegate.
        graph: The decoded ``VkGraph``.
        constants: Its constant tensors by the id of their value.
    """

    payload: bytes
    graph: Any
    constants: dict[int, torch.Tensor]

    @property
    def operators(self) -> list[str]:
        """The operators that the graph calls, in order."""
        return [call.name for call in self.graph.chain]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Execute the graph with reference implementations of its operators.

        Args:
            inputs: The delegate's inputs, in order.

        Returns:
            Its outputs, in order.

        Raises:
            LoweringError: The graph calls an operator that has no reference implementation.
        """
        values: dict[int, Any] = dict(self.constants)
        values.update(zip(self.graph.input_ids, inputs, strict=True))
        for call in self.graph.chain:
            function = reference_of(call.name)
            *arguments, target = call.args
            output = function(*(self._value(index, values) for index in arguments))
            self._store(target, output, values)
        return [values[index] for index in self.graph.output_ids]

    def _value(self, index: int, values: dict[int, Any]) -> Any:
        if index in values:
            return values[index]
        value = self.graph.values[index].value
        kind = type(value).__name__
        if kind == "Null":
            return None
        if kind == "ValueList":
            return [self._value(item, values) for item in value.items]
        if kind in ("IntList", "DoubleList", "BoolList"):
            return list(value.items)
        fields = {"Int": "int_val", "Double": "double_val", "Bool": "bool_val"}
        if kind == "String":
            return value.string_val
        if kind in fields:
            return getattr(value, fields[kind])
        raise LoweringError(
            f"The Vulkan graph reads value {index} ({kind}) before anything computes it. "
            "Verify the program with the sizes it was lowered for, without dynamic_shapes."
        )

    def _store(self, target: int, output: Any, values: dict[int, Any]) -> None:
        value = self.graph.values[target].value
        if type(value).__name__ != "ValueList":
            values[target] = self._typed(value, output)
            return
        for item, part in zip(value.items, output, strict=False):
            self._store(item, part, values)

    def _typed(self, value: Any, output: Any) -> Any:
        """Give a tensor the type of its value: a graph stores no other for operators that cast."""
        if type(value).__name__ != "VkTensor" or not isinstance(output, torch.Tensor):
            return output
        declared = _TYPES[value.datatype.name]
        # 64 bits are kept in 32, which is a matter of storage; half precision is one of values.
        kept = _kind(declared) == _kind(output.dtype) and declared not in _HALF_OR_SINGLE
        return output if kept else output.to(declared)


def decode(buffer: bytes) -> list[DelegateGraph]:
    """Decode the Vulkan graphs of a program.

    Args:
        buffer: The bytes of a ``.pte``.

    Returns:
        The graphs, in the order of the program's delegates.

    Raises:
        LoweringError: A delegate's payload is no Vulkan graph.
    """
    VALUES.checked()
    serialize = import_executorch(f"{_SERIALIZATION}.vulkan_graph_serialize")
    file = import_executorch("executorch.exir._serialize._program").deserialize_pte_binary(buffer)
    graphs = []
    for delegate in file.program.execution_plan[0].delegates:
        payload = bytes(file.program.backend_delegate_data[delegate.processed.index].data)
        length = serialize.VulkanDelegateHeader.EXPECTED_LENGTH
        try:
            header = serialize.VulkanDelegateHeader.from_bytes(payload[:length])
        except ValueError as error:
            raise LoweringError(f"A delegate of the program is no Vulkan graph: {error}") from error
        start, size = header.flatbuffer_offset, header.flatbuffer_size
        graph = serialize.flatbuffer_to_vk_graph(payload[start : start + size])
        raw = payload[header.bytes_offset : header.bytes_offset + header.bytes_size]
        graphs.append(DelegateGraph(payload, graph, _constants(graph, raw, file.named_data)))
    return graphs


def delegate_calls(
    partitioned: ExportedProgram, graphs: Sequence[DelegateGraph]
) -> dict[Node, DelegateGraph]:
    """Find the Vulkan graph of each delegate call.

    Args:
        partitioned: The program after partitioning.
        graphs: The decoded graphs of its ``.pte``.

    Returns:
        Graph by the node that calls it.

    Raises:
        LoweringError: The ``.pte`` does not hold one of the delegates.
    """
    found = {}
    for node in partitioned.graph.nodes:
        if not calls_delegate(node.target):
            continue
        found[node] = graph_of(getattr(partitioned.graph_module, node.args[0].target), graphs)
    return found


def graph_of(lowered: Any, graphs: Sequence[DelegateGraph]) -> DelegateGraph:
    """Find the Vulkan graph of a delegate.

    Args:
        lowered: The delegate's ``LoweredBackendModule``.
        graphs: The decoded graphs of the ``.pte``.

    Returns:
        Its graph.

    Raises:
        LoweringError: The ``.pte`` does not hold it.
    """
    payload = bytes(lowered.processed_bytes)
    graph = next((g for g in graphs if g.payload.startswith(payload)), None)
    if graph is None:
        raise LoweringError("The .pte does not hold a delegate of the partitioned program.")
    return graph


def check_outputs(partitioned: ExportedProgram, graphs: Sequence[DelegateGraph]) -> None:
    """Raise if a Vulkan graph returns fewer values than the program reads from it.

    ExecuTorch counts the outputs of a delegate before it simplifies the delegate's graph, and
    serializes outputs that have become one value once.

    Args:
        partitioned: The program after partitioning.
        graphs: The decoded graphs of its ``.pte``.

    Raises:
        LoweringError: With both numbers.
    """
    for node, graph in delegate_calls(partitioned, graphs).items():
        read = 1 + max((u.args[1] for u in node.users if u.target is operator.getitem), default=-1)
        returned = len(graph.graph.output_ids)
        if read > returned:
            raise LoweringError(
                f"ExecuTorch serialized a Vulkan graph with {returned} outputs, of which the "
                f"program reads {read}: two values that leave it are the same. Return or reuse "
                "one of them instead of its copy."
            )


def _constants(graph: Any, raw: bytes, named: Any) -> dict[int, torch.Tensor]:
    constants = {}
    for index, item in enumerate(graph.values):
        value = item.value
        if type(value).__name__ != "VkTensor" or value.constant_id < 0:
            continue
        stored = graph.constants[value.constant_id]
        if stored.named_key:
            entry = named.pte_data[stored.named_key]
            position = (
                entry if isinstance(entry, int) else operator.attrgetter("buffer_index")(entry)
            )
            data = bytes(named.buffers[position])[: stored.length]
        else:
            data = raw[stored.offset : stored.offset + stored.length]
        dtype = _TYPES[value.datatype.name]
        flat = torch.frombuffer(bytearray(data), dtype=dtype)
        constants[index] = flat[: _numel(value.dims)].reshape(value.dims)
    return constants


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "int"


def _numel(dims: Sequence[int]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count
