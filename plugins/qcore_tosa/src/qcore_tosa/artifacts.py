"""What the compilers behind the delegates were given and what they made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from qcore.compat import Change
from qcore.errors import LoweringError
from qcore.files import write_whole

if TYPE_CHECKING:
    import os

    from torch.export import ExportedProgram

__all__ = ["Compilation", "Delegate", "delegates_of", "recorded_compilations", "save_numbered"]


@attrs.frozen(eq=False)
class Compilation:
    """One call of the compiler that turns TOSA into what the device takes.

    Attributes:
        tosa: The TOSA graph, a flatbuffer.
        binary: What the compiler made of it.
        figures: What the compiler said about it, as data; None where it says nothing.
    """

    tosa: bytes = attrs.field(repr=False)
    binary: bytes = attrs.field(repr=False)
    figures: Any = None

    @property
    def input_names(self) -> list[str]:
        """The inputs of the TOSA graph; those that it does not use are missing."""
        from tosa.TosaGraph import TosaGraph

        block = TosaGraph.GetRootAs(self.tosa, 0).Regions(0).Blocks(0)
        return [block.Inputs(index).decode() for index in range(block.InputsLength())]


@attrs.frozen(eq=False)
class Delegate:
    """One delegate of a program.

    Attributes:
        name: Its path in the lowered graph; the part before a dot is the body of a conditional or
            of a loop.
        module: ExecuTorch's ``LoweredBackendModule``.
        compilation: The TOSA graph inside it, and what was made of that.
    """

    name: str
    module: Any = attrs.field(repr=False)
    compilation: Compilation


@contextmanager
def recorded_compilations(
    compiler: Change, compile_: Callable[..., Compilation]
) -> Iterator[dict[bytes, Compilation]]:
    """Put a compiler of one's own in the place of a backend's, and keep what goes through it.

    ExecuTorch's way to keep the files between its stages, a folder in the compile specification,
    ends up inside the ``.pte`` with its path, and delegates overwrite each other's there.

    Args:
        compiler: The change of the function that the backend calls.
        compile_: Takes the original and its arguments, and compiles.

    Yields:
        The compilations by their binary; filled during the context.
    """
    found: dict[bytes, Compilation] = {}
    (original,) = compiler.originals()

    def record(*args: Any, **kwargs: Any) -> Any:
        results: list[Any] = []

        def kept(*args: Any, **kwargs: Any) -> bytes:
            results.append(original(*args, **kwargs))
            # From ExecuTorch 1.5 on, Vela's stands in an object.
            return bytes(getattr(results[-1], "processed_bytes", results[-1]))

        made = compile_(kept, *args, **kwargs)
        found[made.binary] = made
        return results[-1] if results else made.binary

    with compiler.applied(record):
        yield found


def delegates_of(
    partitioned: ExportedProgram, compilations: Mapping[bytes, Compilation]
) -> tuple[Delegate, ...]:
    """List the delegates of a lowered graph with what is inside them.

    Args:
        partitioned: The graph after partitioning.
        compilations: What was compiled meanwhile, by binary; a delegate that is not among it holds
            a TOSA graph as it is.

    Returns:
        The delegates, those in the bodies of conditionals and loops included.
    """
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    return tuple(
        Delegate(name, module, compilations.get(held) or Compilation(held, held))
        for name, module in partitioned.graph_module.named_modules()
        if isinstance(module, LoweredBackendModule)
        for held in (module.processed_bytes,)
    )


def save_numbered(path: str | os.PathLike[str], contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write one file for each delegate, whole or not at all.

    Args:
        path: The file. With several delegates, their names come before the suffix.
        contents: The bytes by the delegate's name.

    Returns:
        The files, in the order of the contents.

    Raises:
        LoweringError: There is nothing to write, or the folder does not exist or is not writable.
    """
    target = Path(path)
    if not contents:
        raise LoweringError(
            f"There is nothing to save to {target}: the program has no delegate. "
            "Its report says why no node was delegated."
        )
    alone = len(contents) == 1
    paths = [
        target if alone else target.with_name(f"{target.stem}.{name}{target.suffix}")
        for name in contents
    ]
    return tuple(
        write_whole(file, content, "the delegate", f"model{target.suffix}")
        for file, content in zip(paths, contents.values(), strict=True)
    )
