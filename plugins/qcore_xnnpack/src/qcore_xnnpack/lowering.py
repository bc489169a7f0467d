"""Lowering to ExecuTorch's XNNPACK delegate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qcore.errors import LoweringError
from qcore.lowering import ExecuTorchRunner, import_executorch, lower_with_partitioner
from qcore_xnnpack.padding import fuse_padding

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from qcore.lowering import LoweredProgram

__all__ = ["lower_to_xnnpack"]

_OPTIONS = ("threads", "timeout_s")


def lower_to_xnnpack(program: ExportedProgram, **options: Any) -> LoweredProgram:
    """Delegate to XNNPACK what it takes; the rest runs on portable kernels.

    Args:
        program: The converted model, exported.
        **options: ``threads``, how many the host run uses (its default: all); ``timeout_s``, the
            seconds that one host run may take.

    Returns:
        The program.

    Raises:
        LoweringError: An option is unknown, or ExecuTorch cannot lower the model.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise LoweringError(
            f"xnnpack's lower has no option {', '.join(map(repr, unknown))}. "
            f"Its options: {', '.join(_OPTIONS)}."
        )
    fuse_padding(program.graph_module)
    partition = import_executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    return lower_with_partitioner(
        program,
        None,
        backend="xnnpack",
        partitioners=[partition.XnnpackPartitioner()],
        runner=ExecuTorchRunner(backends=("XnnpackBackend",), **options),
    )
