"""Values in files, on their way to the process that runs a program, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

__all__ = ["read_values", "write_values"]

_MARK: Final = b"qcore values\n"
_ALIGNED: Final = 64


def write_values(path: str | os.PathLike[str], values: Sequence[Any]) -> None:
    """Write tensors and plain data.

    Tensors alone, laid out in the order of their dimensions, are written as they lie in memory,
    which takes a tenth of the time of ``torch.save``. That writes all others.

    Args:
        path: The file.
        values: What to write; tensors of the CPU.
    """
    if not all(map(_lies_in_order, values)):
        torch.save(list(values), path)
        return
    header = json.dumps([[str(v.dtype).removeprefix("torch."), list(v.shape)] for v in values])
    with open(path, "wb") as file:
        file.write(_MARK + header.encode() + b"\n")
        for value in values:
            file.write(bytes(-file.tell() % _ALIGNED))
            file.write(value.detach().reshape(-1).view(torch.uint8).numpy())


def read_values(path: str | os.PathLike[str]) -> list[Any]:
    """Read what :func:`write_values` wrote.

    Args:
        path: The file.

    Returns:
        The values.
    """
    data = bytearray(Path(path).read_bytes())
    if not data.startswith(_MARK):
        found: list[Any] = torch.load(path, weights_only=True)
        return found
    end = data.index(b"\n", len(_MARK))
    values, at = [], end + 1
    for dtype, shape in json.loads(data[len(_MARK) : end]):
        value = torch.empty(shape, dtype=getattr(torch, dtype))
        if count := value.numel():
            at += -at % _ALIGNED
            value = torch.frombuffer(data, dtype=value.dtype, count=count, offset=at).view(shape)
            at += value.nbytes
        values.append(value)
    return values


def _lies_in_order(value: Any) -> bool:
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and not value.is_complex()
        and value.stride() == torch.empty(value.shape, device="meta").stride()
    )
