"""Lowering to ExecuTorch's VGF delegate."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, check_options
from qcore_tosa.artifacts import Compilation
from qcore_tosa.lowering import TosaLowering
from qcore_tosa.reference import TIMEOUT_S
from qcore_vgf.compat.executorch import COMPILER, CONVERTER
from qcore_vgf.program import VgfProgram
from qcore_vgf.runner import VgfRunner

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["CONVERTER_PATH", "VgfLowering", "lower_to_vgf"]

_OPTIONS: Final = ("check", "threads", "timeout_s")
CONVERTER_PATH: Final = "MODEL_CONVERTER_PATH"


class VgfLowering(TosaLowering):
    """ExecuTorch's lowering to VGF, by Arm's model converter."""

    partitioner = "executorch.backends.arm.vgf.partitioner:VgfPartitioner"
    compiler = COMPILER
    constants = False  # ExecuTorch's runtime returns zeros for them.
    control_flow = False
    program_type = VgfProgram

    def executed(self, program: LoweredProgram, inputs: Sequence[Any]) -> Sequence[Any]:
        """Execute a program on the reference model: emulating Vulkan takes seconds to begin."""
        assert isinstance(program, VgfProgram)
        return super().executed(program.on_reference_model(), inputs)

    def compiled(self, compile_: Callable[..., bytes], *args: Any, **kwargs: Any) -> Compilation:
        """Convert a TOSA graph."""
        with _converter():
            try:
                return Compilation(args[0], compile_(*args, **kwargs))
            except RuntimeError as error:
                said = str(error).partition("Stderr:\n")[2].strip() or str(error)
                lines = "".join(f"\n  | {line}" for line in said.splitlines())
                raise LoweringError(
                    "Arm's model converter does not turn the TOSA graph into a VGF. It "
                    f"says:{lines}"
                ) from error


def lower_to_vgf(program: ExportedProgram, compile_spec: Any, **options: Any) -> LoweredProgram:
    """Delegate to VGF what it takes; the rest runs on portable kernels.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``VgfCompileSpec``.
        **options: ``check=False`` leaves out executing the program once, on the reference model,
            and mending it; ``threads``, how many the portable kernels use (their default: all);
            ``timeout_s``, the seconds that loading the program and one run of it may take
            (default: 600, for the emulation is slow).

    Returns:
        The program.

    Raises:
        LoweringError: An option is unknown, a shape is dynamic, or ExecuTorch cannot lower the
            model.
        RuntimeUnavailableError: ExecuTorch or Arm's model converter is not installed.
    """
    check_options("vgf", options, _OPTIONS)
    check = options.pop("check", True)
    runner = VgfRunner(backends=("VgfBackend",), **{"timeout_s": TIMEOUT_S, **options})
    return VgfLowering("vgf", runner=runner, compile_spec=compile_spec, check=check).lower(program)


def _converter() -> AbstractContextManager[None]:
    """Let ExecuTorch find the converter's package where its script is not on the PATH.

    That is so wherever an environment's Python is called without activating the environment.
    """
    (theirs,) = CONVERTER.originals()
    spec = importlib.util.find_spec("model_converter")

    def find() -> str:
        if CONVERTER_PATH in os.environ or spec is None or spec.origin is None:
            return str(theirs())
        return str(Path(spec.origin).parent / "binaries" / "bin" / "model-converter")

    return CONVERTER.applied(find)
