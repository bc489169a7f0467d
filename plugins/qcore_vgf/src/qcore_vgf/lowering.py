"""Lowering to ExecuTorch's VGF delegate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from qcore.errors import LoweringError
from qcore_tosa.artifacts import Compilation
from qcore_tosa.lowering import Target, check_options, lower_by_tosa
from qcore_tosa.reference import TIMEOUT_S
from qcore_vgf.program import VgfProgram
from qcore_vgf.runner import VgfRunner

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lower_to_vgf"]

_OPTIONS: Final = ("threads", "timeout_s")
_CONVERTER: Final = "MODEL_CONVERTER_PATH"


def lower_to_vgf(program: ExportedProgram, compile_spec: Any, **options: Any) -> VgfProgram:
    """Delegate to VGF what it takes; the rest runs on portable kernels.

    Args:
        program: The converted model, exported.
        compile_spec: ExecuTorch's ``VgfCompileSpec``.
        **options: ``threads``, how many the portable kernels use (their default: all);
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
    target = Target(
        name="vgf",
        partitioner="executorch.backends.arm.vgf.partitioner:VgfPartitioner",
        compiler="executorch.backends.arm.vgf.backend:vgf_compile",
        compile=_convert,
        control_flow=False,
        constants=False,  # ExecuTorch's runtime returns zeros for them.
    )
    runner = VgfRunner(backends=("VgfBackend",), **{"timeout_s": TIMEOUT_S, **options})
    return lower_by_tosa(program, compile_spec, target, VgfProgram, runner)


def _convert(convert: Callable[..., bytes], tosa: bytes, *args: Any, **kwargs: Any) -> Compilation:
    with _converter_on_path():
        try:
            return Compilation(tosa, convert(tosa, *args, **kwargs))
        except RuntimeError as error:
            said = str(error).partition("Stderr:\n")[2].strip() or str(error)
            lines = "".join(f"\n  | {line}" for line in said.splitlines())
            raise LoweringError(
                f"Arm's model converter does not turn the TOSA graph into a VGF. It says:{lines}"
            ) from error


@contextmanager
def _converter_on_path() -> Iterator[None]:
    """Let ExecuTorch find the converter's package where its script is not on the PATH.

    That is so wherever an environment's Python is called without activating the environment.
    """
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("model_converter")
    if _CONVERTER in os.environ or spec is None or spec.origin is None:
        yield
        return
    os.environ[_CONVERTER] = str(Path(spec.origin).parent / "binaries" / "bin" / "model-converter")
    try:
        yield
    finally:
        del os.environ[_CONVERTER]
