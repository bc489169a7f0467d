"""For backends of qcore on ExecuTorch: lowering in steps, its runtime in a process of its own.

Importing this package imports torch. ExecuTorch loads when something is lowered, its runtime in a
process of its own when something is run.
"""

from __future__ import annotations

from qcore_executorch.header import check_pte
from qcore_executorch.importing import import_executorch
from qcore_executorch.lowering import STAGES, ExecuTorchLowering
from qcore_executorch.pte import PTE
from qcore_executorch.report import ExecuTorchReport
from qcore_executorch.rewriting import rewritten
from qcore_executorch.runner import ExecuTorchRunner
from qcore_executorch.saved import restored

__all__ = [
    "PTE",
    "STAGES",
    "ExecuTorchLowering",
    "ExecuTorchReport",
    "ExecuTorchRunner",
    "check_pte",
    "import_executorch",
    "restored",
    "rewritten",
]
