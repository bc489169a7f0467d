"""Programs read back from files: their runner and their report, as they were when saved."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import attrs

from qcore.errors import RuntimeExecutionError
from qcore.lowering import LoweredProgram, Saved
from qcore_executorch.report import ExecuTorchReport
from qcore_executorch.runner import ExecuTorchRunner

__all__ = ["restored"]

_OURS: Final = "executorch."


def restored(
    program: LoweredProgram,
    saved: Saved,
    *,
    runner: type[ExecuTorchRunner] = ExecuTorchRunner,
    report: type[ExecuTorchReport] = ExecuTorchReport,
    modules: Collection[str] = (),
) -> LoweredProgram:
    """Give a program that was read from a file its runner and its report; for ``loaded``.

    Args:
        program: The program, as the core read it.
        saved: What was saved beside it.
        runner: The class of the backend's runner.
        report: The class of the backend's reports.
        modules: Modules that register kernels and that a file may name, beside ExecuTorch's own.
            A file must not choose what is imported.

    Returns:
        The program.

    Raises:
        RuntimeExecutionError: The file names another module.
    """
    for name in saved.needs.get("modules", ()):
        if not name.startswith(_OURS) and name not in modules:
            raise RuntimeExecutionError(
                f"The program wants the module {name!r} imported, which is none of ExecuTorch's "
                f"and none that {program.backend} names. If you trust the file, load it with "
                f"runner=qcore_executorch.ExecuTorchRunner(modules=[{name!r}])."
            )
    return attrs.evolve(
        program, runner=runner(**saved.needs), report=saved.report_as(report, program)
    )
