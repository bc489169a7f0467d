"""Recognising a program file before a runtime is started for it."""

from __future__ import annotations

import struct

from qcore.errors import RuntimeExecutionError

__all__ = ["FLATBUFFER_ID", "check_pte"]

FLATBUFFER_ID = b"ET"
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
    if buffer[4:6] != FLATBUFFER_ID:
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
