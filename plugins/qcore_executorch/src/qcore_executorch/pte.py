"""Recognising a program file before a runtime is started for it."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qcore.errors import RuntimeExecutionError
from qcore_executorch.importing import import_executorch

if TYPE_CHECKING:
    from qcore.lowering import Runner

__all__ = ["PTE", "PteArtifact", "check_pte"]

# What the emitter adds, and what names no operator of the model.
_PRIMITIVES = ("executorch_prim::", "dim_order_ops::")
_FLATBUFFER_ID = b"ET"
_HEADER_ID = b"eh"
_HEADER_AT = 8
# header id (4), header length (4), program size (8), offset of the first segment (8)
_HEADER = struct.Struct("<4sIQQ")
_SEGMENTS_SIZE = struct.Struct("<Q")


def check_pte(buffer: bytes, source: str = "the buffer") -> None:
    """Check that bytes are an ExecuTorch program and that none are missing at the end.

    Args:
        buffer: The bytes of a ``.pte`` file.
        source: Where they come from, for the message.

    Raises:
        RuntimeExecutionError: The bytes are empty, no program, or a truncated one.
    """
    if not buffer:
        raise RuntimeExecutionError(
            f"{source} is empty, not an ExecuTorch program. Save the program again with "
            "LoweredProgram.save()."
        )
    # The identifier carries a two-digit version, which the runtime itself checks.
    if buffer[4:6] != _FLATBUFFER_ID:
        raise RuntimeExecutionError(
            f"{source} is not an ExecuTorch program: a .pte has 'ET' and a version at byte 4, "
            f"this has {buffer[4:8]!r}. Pass a file written by LoweredProgram.save()."
        )
    expected = _expected_size(buffer)
    if len(buffer) < expected:
        raise RuntimeExecutionError(
            f"{source} is truncated: it has {len(buffer)} bytes, its header announces {expected}. "
            "Copy or save the program again."
        )


def _expected_size(buffer: bytes) -> int:
    minimum = _HEADER_AT + _HEADER.size
    if len(buffer) < minimum:
        return minimum
    magic, length, program_size, segments_at = _HEADER.unpack_from(buffer, _HEADER_AT)
    if magic[:2] != _HEADER_ID:
        return 0  # a program without the extended header does not record its size
    segments = 0
    if length >= _HEADER.size + _SEGMENTS_SIZE.size and len(buffer) >= minimum + 8:
        (segments,) = _SEGMENTS_SIZE.unpack_from(buffer, minimum)
    return int(max(program_size, segments_at + segments if segments_at else 0))


class PteArtifact:
    """ExecuTorch programs, as the core reads them back; see :class:`qcore.lowering.Artifact`."""

    suffix: ClassVar[str] = ".pte"

    def recognizes(self, buffer: bytes) -> bool:
        """Say whether bytes begin as a ``.pte`` does."""
        return buffer[4:6] == _FLATBUFFER_ID

    def check(self, buffer: bytes, source: str) -> None:
        """Raise unless bytes are a whole ``.pte``."""
        check_pte(buffer, source)

    def operators(self, buffer: bytes) -> Counter[str]:
        """Return the operators that a ``.pte`` calls outside its delegates."""
        serialize: Any = import_executorch("executorch.exir._serialize._program")
        plan = serialize.deserialize_pte_binary(buffer).program.execution_plan[0]
        names = [
            plan.operators[index].name
            for chain in plan.chains
            for instruction in chain.instructions
            if (index := getattr(instruction.instr_args, "op_index", None)) is not None
        ]
        return Counter(n.replace("::", ".") for n in names if not n.startswith(_PRIMITIVES))

    def runner(self, buffer: bytes) -> Runner:
        """Return ExecuTorch's own runtime."""
        from qcore_executorch.runner import ExecuTorchRunner

        return ExecuTorchRunner()


#: The format of every program that ExecuTorch emits.
PTE: Final = PteArtifact()
