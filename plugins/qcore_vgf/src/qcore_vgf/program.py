"""Programs in the VGF format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from qcore_tosa.artifacts import save_numbered
from qcore_tosa.program import TosaProgram

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["VgfProgram"]


@attrs.frozen(eq=False)
class VgfProgram(TosaProgram):
    """A model compiled to VGF, as a ``.pte`` with the VGF inside."""

    def save_vgf(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the VGF files alone, without ExecuTorch around them.

        Args:
            path: The file, by custom with the suffix ``.vgf``. With several delegates, the name
                of each comes before the suffix: ``model.lowered_module_0.vgf``.

        Returns:
            The files.

        Raises:
            LoweringError: There is no delegate, or the files cannot be written.
        """
        return save_numbered(path, {d.name: d.compilation.binary for d in self._own_delegates()})

    def run(
        self, *inputs: Any, method: str = "forward", reference: bool = False, **keywords: Any
    ) -> Any:
        """Execute the program in a process of its own.

        Args:
            *inputs: The model's positional arguments, in any memory layout.
            method: Name of the program's method.
            reference: Execute its TOSA graphs on Arm's reference model instead of Vulkan.
            **keywords: Its keyword arguments, where it was captured with some.

        Returns:
            What the model returns, in its structure.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program; the message says what to
                install.
            RuntimeExecutionError: The inputs do not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        if reference:
            return self.on_reference_model().run(*inputs, method=method, **keywords)
        return super().run(*inputs, method=method, **keywords)

    def run_many(
        self, samples: Iterable[Any], *, method: str = "forward", reference: bool = False
    ) -> list[Any]:
        """Execute the program on many inputs in one process.

        Args:
            samples: The model's arguments of each run: positional ones as a tuple or list, keyword
                ones as a mapping; a lone tensor stands for a model with one argument.
            method: Name of the program's method.
            reference: Execute its TOSA graphs on Arm's reference model instead of Vulkan.

        Returns:
            What the model returns for each, in order.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program; the message says what to
                install.
            RuntimeExecutionError: An input does not fit, or the runtime refuses or takes too long.
            RuntimeCrashError: The runtime's process died.
        """
        if reference:
            return self.on_reference_model().run_many(samples, method=method)
        return super().run_many(samples, method=method)
