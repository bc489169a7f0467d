"""What a saved program carries behind its last byte, so that it runs with nothing else named.

A file is the artifact, as the compiler wrote it, and a footer: a mark, compressed JSON, its length
and checksum, the mark again. What reads the artifact alone stops before the footer.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from qcore.errors import RuntimeExecutionError, warn
from qcore.lowering.specs import TensorSpec
from qcore.report import LoweringReport

if TYPE_CHECKING:
    from qcore.lowering.program import LoweredProgram

__all__ = ["Saved", "footer_of", "names_modules", "split_footer", "tree_data", "tree_of"]

_MARK: Final = b"\x00qcore-program\xf1\n"
_END: Final = struct.Struct(f"<QI{len(_MARK)}s")  # length and CRC-32 of the JSON, the mark
_FORMAT: Final = 1
_NUMBERS: Final = {kind.__name__: kind for kind in (int, float, bool, str, type(None))}

ReportT = TypeVar("ReportT", bound=LoweringReport)


@attrs.frozen
class Saved:
    """What was saved beside the bytes of a program.

    Attributes:
        backend: Name of the backend that it was lowered for.
        needs: What the runner's ``needs()`` returned; empty where it has none.
        report: The lowering report, as ``to_dict`` gives it; empty where none was saved.
        inputs: As the attribute of ``LoweredProgram``.
        outputs: As the attribute of ``LoweredProgram``.
        structure: As the attribute of ``LoweredProgram``.
        call: As the attribute of ``LoweredProgram``.
    """

    backend: str = "unknown"
    needs: Mapping[str, Any] = attrs.field(factory=dict)
    report: Mapping[str, Any] = attrs.field(factory=dict)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    structure: Any = None
    call: Any = None

    def report_as(self, kind: type[ReportT], program: LoweredProgram) -> ReportT:
        """Return the report.

        Args:
            kind: The class of the backend's reports.
            program: The program that was read.

        Returns:
            The report; where none was saved, or by a release whose reports had other fields, one
            that knows no more than the program's size.
        """
        try:
            return kind.from_dict(self.report)
        except (KeyError, TypeError, ValueError):
            size = len(program.buffer)
            return kind(backend=program.backend, program_bytes=size, complete=False)


def footer_of(program: LoweredProgram) -> bytes:
    """Return what is written behind a program: the same for equal ones, so without the seconds."""
    needs = getattr(program.runner, "needs", dict)
    data = {
        "format": _FORMAT,
        "backend": program.backend,
        "needs": needs(),
        "report": {**program.report.to_dict(), "seconds": {}},
        "inputs": _specs_data(program.inputs),
        "outputs": _specs_data(program.outputs),
        "structure": tree_data(program.structure, "output"),
        "call": tree_data(program.call, "input"),
    }
    payload = zlib.compress(json.dumps(data).encode(), 9)
    return _MARK + payload + _END.pack(len(payload), zlib.crc32(payload), _MARK)


def split_footer(data: bytes, source: str) -> tuple[bytes, Saved | None]:
    """Part a file into the artifact and what was saved beside it; None for a file without a footer.

    RuntimeExecutionError where the footer is cut short, damaged or of a later release.
    """
    if not data.endswith(_MARK):
        if _MARK in data:
            raise RuntimeExecutionError(
                f"{source} is truncated: what was saved behind the program has no end. "
                "Copy or save the program again."
            )
        return data, None
    size, checksum, _ = _END.unpack_from(data, max(len(data) - _END.size, 0))
    start = len(data) - _END.size - size
    payload = data[start : start + size] if start > 0 else b""
    if zlib.crc32(payload) != checksum or data[start - len(_MARK) : start] != _MARK:
        raise RuntimeExecutionError(
            f"{source} is damaged: what was saved behind the program does not fit its checksum. "
            "Copy or save the program again."
        )
    read = json.loads(zlib.decompress(payload))
    if read["format"] > _FORMAT:
        raise RuntimeExecutionError(
            f"{source} was saved by a later release of qcore (its format is {read['format']}, this "
            f"release reads {_FORMAT}). Update it: pip install --upgrade qcore-quant."
        )
    return data[: start - len(_MARK)], Saved(
        backend=read["backend"],
        needs=read["needs"],
        report=read["report"],
        inputs=_specs(read["inputs"]),
        outputs=_specs(read["outputs"]),
        structure=tree_of(read["structure"], "output"),
        call=tree_of(read["call"], "input"),
    )


def _specs_data(specs: Sequence[TensorSpec] | None) -> Any:
    if specs is None or any(s.is_number and s.dtype.__name__ not in _NUMBERS for s in specs):
        return None
    return [
        {**attrs.asdict(spec), "dtype": spec.dtype.__name__ if spec.is_number else str(spec.dtype)}
        for spec in specs
    ]


def _specs(data: Any) -> tuple[TensorSpec, ...] | None:
    import torch

    if data is None:
        return None

    def dtype(name: str) -> Any:
        return _NUMBERS[name] if name in _NUMBERS else getattr(torch, name.removeprefix("torch."))

    return tuple(
        TensorSpec(
            name=item["name"],
            shape=tuple(item["shape"]),
            dtype=dtype(item["dtype"]),
            bounds=tuple((low, high) for low, high in item["bounds"]),
            value=item["value"],
            symbols=tuple(item.get("symbols", ())),
        )
        for item in data
    )


def tree_data(tree: Any, what: str) -> str | None:
    """Return a ``TreeSpec`` as text; None, with a warning, where a class of it has no name."""
    from torch.utils._pytree import treespec_dumps

    try:
        return None if tree is None else str(treespec_dumps(tree))
    except (NotImplementedError, TypeError) as error:
        _warn_flat(what, error)
        return None


def tree_of(data: str | None, what: str) -> Any:
    """Return the ``TreeSpec`` of a text; None, with a warning, where a class of it is not there."""
    from torch.utils._pytree import treespec_loads

    try:
        if names_modules(data):
            raise NotImplementedError("it names modules to import, which a file must not")
        return None if data is None else treespec_loads(data)
    except (NotImplementedError, KeyError) as error:
        _warn_flat(what, error)
        return None


def names_modules(data: Any) -> bool:
    """Say whether JSON, or a ``TreeSpec`` in a string of it, has torch import modules."""
    if isinstance(data, dict):
        named = "__enum__" in data or "default_factory_module" in data
        return named or any(map(names_modules, data.values()))
    if isinstance(data, list):
        return any(map(names_modules, data))
    if not isinstance(data, str) or not data.lstrip().startswith(("{", "[", '"')):
        return False
    try:
        return names_modules(json.loads(data))
    except ValueError:
        return False


def _warn_flat(what: str, error: Exception) -> None:
    warn(
        f"The structure of the program's {what} does not go into a file, nor out of one ({error}): "
        "read back, the program has it flat. Register its class with "
        "torch.utils._pytree.register_pytree_node(..., serialized_type_name=...) before you save "
        "and before you load, or let the model use dictionaries."
    )
