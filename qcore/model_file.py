"""Quantized models as files: torch's own archive, with qcore's facts beside it.

Reading runs no code that a file brings. torch would unpickle objects, evaluate the sizes that are
written as formulas, and call whatever functions the graph names; a file in which any of these is
more than a model needs is refused before torch sees it.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_unflatten

from qcore.compat.torch import CODE_GENERATORS
from qcore.errors import ModelFileError
from qcore.files import write_whole
from qcore.lowering import export_for_lowering
from qcore.lowering.saved import names_modules
from qcore.quiet import quiet
from qcore.report import AnnotationReport, read_decisions, write_decisions

__all__ = ["read_exported", "read_model", "write_model"]

_FACTS: Final = "qcore.json"
_ARCHIVE: Final = "model.pt2"
_FORMAT: Final = 1
_PACKAGES: Final = ("torch", "torchao")
_EXAMPLES: Final = "data/sample_inputs/"
_OBJECTS: Final = (_EXAMPLES, "data/constants/custom_obj", "extra/")
# Formulas of sizes as sympy writes them: Symbol('s0', positive=True, integer=True)
_SIZES: Final = re.compile(
    r"(?:'?\b[a-z]{1,4}\d+\b'?|\b(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|"
    r"FloorDiv|CleanDiv|CeilDiv|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|True|False|true|false|int_oo|oo|"
    r"positive|nonnegative|integer|real)\b|\d+|[\s+\-*/%(),<>=!&|~])*"
)
_FUNCTIONS: Final = re.compile(
    r"torch\.ops\.\w+\.(?!_?_?load)\w+(\.\w+)?|torch\.sym_[a-z]+|math\.(ceil|floor|trunc)|"
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)


def write_model(model: GraphModule, report: AnnotationReport, path: str | os.PathLike[str]) -> Path:
    """Write a quantized model to a file, whole or not at all; ModelFileError where that fails."""
    exported = export_for_lowering(model, _example(model))
    exported._example_inputs = None  # The user's data stays with the user.
    archive, file = io.BytesIO(), io.BytesIO()
    torch.export.save(exported, archive)
    facts = {
        "format": _FORMAT,
        "versions": {name: version(name) for name in ("qcore-quant", *_PACKAGES)},
        "report": report.to_dict(),
    }
    with zipfile.ZipFile(file, "w") as whole:
        whole.writestr(zipfile.ZipInfo(_FACTS), json.dumps(facts))
        whole.writestr(zipfile.ZipInfo(_ARCHIVE), archive.getvalue())
    return write_whole(path, file.getvalue(), "the model", "model.qpt2", ModelFileError)


def read_model(path: str | os.PathLike[str]) -> tuple[GraphModule, AnnotationReport]:
    """Read what ``write_model`` wrote: the model, which runs in eager mode, and its report.

    ModelFileError where there is no such file, it is none of these or cut short, other versions
    wrote it, or it holds what is no part of a quantized model.
    """
    source = os.fspath(path)
    facts, archive = _parts(source)
    _check_versions(facts, source)
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        _refuse_odd(parts, source, "Save the model again with result.save().")
    model: Any = torch.export.load(io.BytesIO(archive)).module(check_guards=False)
    report = AnnotationReport.from_dict(facts["report"])
    write_decisions(model, report)
    return model, read_decisions(model) or report


def read_exported(path: str | os.PathLike[str] | BinaryIO) -> ExportedProgram:
    """Read a float model that ``torch.export.save`` wrote, without running what its file brings.

    Args:
        path: The file, by custom with the suffix ``.pt2``, or one that is open.

    Returns:
        The program, without the example inputs, which torch would unpickle.

    Raises:
        ModelFileError: There is no such file, it is none of these, or it holds what could run code.
    """
    source = os.fspath(path) if isinstance(path, (str, os.PathLike)) else "the program"
    safe = io.BytesIO()
    advice = "Export the model again with torch.export.save(program, 'model.pt2')."
    try:
        with zipfile.ZipFile(path) as parts, zipfile.ZipFile(safe, "w") as kept:
            for name in parts.namelist():
                is_example = name.partition("/")[2].startswith(_EXAMPLES)
                kept.writestr(zipfile.ZipInfo(name), b"" if is_example else parts.read(name))
            _refuse_odd(kept, source, advice)
        safe.seek(0)
        with quiet():
            return torch.export.load(safe)
    except ModelFileError:
        raise
    except Exception as error:  # torch raises whatever it stumbles over.
        reason = getattr(error, "strerror", None) or "it is no whole exported model"
        raise ModelFileError(f"Cannot read a model from {source}: {reason}. {advice}") from error


def _refuse_odd(parts: zipfile.ZipFile, source: str, advice: str) -> None:
    for odd in _odd(parts):
        raise ModelFileError(
            f"{source} is refused: it holds {odd}, which no such model needs and which "
            f"could run code. {advice}"
        )


def _parts(source: str) -> tuple[dict[str, Any], bytes]:
    try:
        with zipfile.ZipFile(source) as whole:
            if set(whole.namelist()) != {_FACTS, _ARCHIVE}:
                raise zipfile.BadZipFile("it holds something else")
            facts: dict[str, Any] = json.loads(whole.read(_FACTS))
            return facts, whole.read(_ARCHIVE)
    except OSError as error:
        raise ModelFileError(
            f"Cannot read a model from {source}: {error.strerror or error}. "
            "Pass the path of a file written by result.save()."
        ) from error
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ModelFileError(
            f"{source} is no whole quantized model ({error}). Pass a file written by "
            "result.save(); a program is read by qcore.LoweredProgram.load()."
        ) from error


def _check_versions(facts: dict[str, Any], source: str) -> None:
    if facts["format"] > _FORMAT:
        raise ModelFileError(
            f"{source} was saved by qcore-quant {facts['versions']['qcore-quant']}, whose format "
            f"{facts['format']} this release does not read. Update it: pip install --upgrade "
            "qcore-quant."
        )
    for name in _PACKAGES:
        wrote, here = facts["versions"][name], version(name)
        if wrote.split(".")[:2] != here.split(".")[:2]:
            series = ".".join(wrote.split(".")[:2])
            raise ModelFileError(
                f"{source} was saved with {name} {wrote}, here is {here}: graphs do not travel "
                f"between them. Install {name}=={series}.*, or quantize the model again here."
            )


def _odd(parts: zipfile.ZipFile) -> Iterator[str]:
    """Find what torch would unpickle, evaluate or call, and a quantized model has no need of."""
    names = parts.namelist()
    if len(set(names)) < len(names):
        yield "two parts of one name"
    for name in names:
        _, _, inner = name.partition("/")
        if inner.startswith(_OBJECTS) and parts.read(name):
            yield f"objects ({inner})"
        elif inner.endswith(".json"):
            data = json.loads(parts.read(name))
            if names_modules(data):
                yield "a structure that imports modules"
            yield from _odd_values(data)


def _odd_values(data: Any) -> Iterator[str]:
    if isinstance(data, list):
        for item in data:
            yield from _odd_values(item)
    elif isinstance(data, dict):
        if data.get("use_pickle"):
            yield "a pickled tensor"
        target, formula = data.get("target"), data.get("expr_str")
        if "inputs" in data and isinstance(target, str) and not _FUNCTIONS.fullmatch(target):
            yield f"a call of {target}"
        if isinstance(formula, str) and not _SIZES.fullmatch(formula):
            yield f"the formula {formula!r}"
        for item in data.values():
            yield from _odd_values(item)


def _example(model: GraphModule) -> Any:
    """Make inputs of the sizes that a graph was captured with."""

    def size(value: Any) -> int:
        return value if isinstance(value, int) else int(value.node.hint)

    values = [n.meta["val"] for n in model.graph.find_nodes(op="placeholder")]
    leaves = [
        torch.zeros([size(s) for s in v.shape], dtype=v.dtype) if isinstance(v, torch.Tensor) else v
        for v in values
    ]
    CODE_GENERATORS.checked()
    info: Any = getattr(model.graph._codegen, "pytree_info", None)
    if info is None:
        return tuple(leaves)
    args, kwargs = tree_unflatten(leaves, info.in_spec)
    return args or kwargs
