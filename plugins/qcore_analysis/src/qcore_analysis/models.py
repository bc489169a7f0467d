"""Models as the command line names them: an exported file, or a function that makes one."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_unflatten

from qcore.errors import near_misses
from qcore.model_file import read_exported
from qcore_analysis.errors import InputError

__all__ = [
    "example_inputs",
    "imported",
    "load_model",
    "model_digest",
    "quantized_example",
    "tensor_bytes",
]

_FORMS: Final = "Pass a .pt2 file, as torch.export.save writes it, or package.module:factory."


def load_model(text: str) -> Any:
    """Return the model that a text names.

    Args:
        text: The path of a ``.pt2`` file, or ``package.module:name`` of a module or of a function
            without arguments that returns one. The working folder is searched, too.

    Returns:
        A ``torch.nn.Module`` in evaluation mode, or an ``ExportedProgram``.

    Raises:
        InputError: There is no such model, or it is none.
        ModelFileError: The file cannot be read, or could run code.
    """
    if ":" in text and not Path(text).exists():
        model = imported(text, "model")
        if not isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
            raise InputError(
                f"{text} gives {type(model).__name__}, and a torch.nn.Module or an "
                "ExportedProgram is due. Name a function without arguments that returns one."
            )
        return model.eval() if isinstance(model, torch.nn.Module) else model
    if not os.path.exists(text):
        raise InputError(f"There is no model {text}. {_FORMS}")
    if text.endswith(".qpt2"):
        raise InputError(
            f"{text} is quantized already, and the float model is due here. {_FORMS} "
            f"qcore quantize {text} -o {Path(text).with_suffix('.pte')} makes a program of it."
        )
    if not text.endswith(".pt2"):
        raise InputError(f"{text} is no file with an exported model. {_FORMS}")
    return read_exported(text)


def imported(text: str, what: str, *, call: bool = True) -> Any:
    """Import what ``package.module:name`` names; a function or class is called.

    Args:
        text: The name.
        what: What it is to be, for messages.
        call: False leaves a function as it is.

    Returns:
        The object.

    Raises:
        InputError: There is no such module or name, or importing or calling it fails.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise InputError(f"{text!r} names no {what}. Write package.module:name.")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # As ``python -m`` does; an installed command does not.
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"Cannot import the {what} {text}: there is no module {error.name!r}. Install it, or "
            "run the command in the folder that it is in."
        ) from error
    except Exception as error:
        raise InputError(
            f"Importing {module_name} failed: {type(error).__name__}: {error}. Try it alone: "
            f"python -c 'import {module_name}'."
        ) from error
    if not hasattr(module, name):
        close = near_misses(name, [n for n in vars(module) if not n.startswith("_")])
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"The module {module_name} has no {name!r}.{hint}")
    found = getattr(module, name)
    if isinstance(found, torch.nn.Module) or not callable(found) or not call:
        return found
    try:
        return found()
    except Exception as error:
        raise InputError(
            f"{text}() failed: {type(error).__name__}: {error}. A {what} is made by a function "
            "that needs no arguments."
        ) from error


def example_inputs(model: Any, shapes: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Make inputs to capture a model with, where there are no samples.

    Args:
        model: A module, or an exported program, whose inputs are known.
        shapes: The shapes of a module's inputs, such as ``1x3x224x224``.

    Returns:
        Random inputs.

    Raises:
        InputError: Shapes are missing or are none.
    """
    if isinstance(model, torch.export.ExportedProgram) and not shapes:
        names = set(model.graph_signature.user_inputs)
        return tuple(value for name, value in _random_inputs(model.graph) if name in names)
    if not shapes:
        raise InputError(
            "A model from a function needs an example to be captured: pass --data DATA, or "
            "--input-shape 1x3x224x224 (once for each input)."
        )
    try:
        return tuple(torch.rand([int(size) for size in text.split("x")]) for text in shapes)
    except (ValueError, RuntimeError):
        raise InputError(f"{shapes} are no shapes. Write them as 1x3x224x224.") from None


def quantized_example(model: GraphModule) -> Any:
    """Make random inputs of the sizes and structure that a quantized model was captured with."""
    leaves = [value for _, value in _random_inputs(model.graph)]
    args, keywords = tree_unflatten(leaves, model.graph._codegen.pytree_info.in_spec)
    return keywords or args


def _random_inputs(graph: Graph) -> Iterator[tuple[str, Any]]:
    for node in graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            if isinstance(value, torch.Tensor):
                sizes = [s if isinstance(s, int) else s.node.hint for s in value.shape]
                value = torch.rand(sizes).to(value.dtype)
            yield node.name, value


def model_digest(model: Any) -> str:
    """Return a digest of the layers and weights of a model.

    Args:
        model: A module or an exported program.

    Returns:
        ``sha256:`` and the digest over its layers as they are printed, or the graph of an exported
        program, and names, types, shapes and bytes of its tensors.
    """
    is_module = isinstance(model, torch.nn.Module)
    state = model.state_dict() if is_module else model.state_dict
    layers = str(model if is_module else model.graph)
    found = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", layers).encode())
    for name in sorted(state):
        found.update(name.encode())
        found.update(tensor_bytes(state[name]))
    return f"sha256:{found.hexdigest()}"


def tensor_bytes(value: torch.Tensor) -> bytes:
    """Return the type, shape and content of a tensor as bytes."""
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    content: bytes = plain.numpy().tobytes()
    return f"{value.dtype}{tuple(value.shape)}".encode() + content
