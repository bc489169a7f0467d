"""From a quantized model to a program, and running that program on a host.

Importing this package imports neither torch nor ExecuTorch; both load when something is lowered
or run.
"""

from __future__ import annotations

from qcore.lowering.executorch import import_executorch, lower_with_partitioner
from qcore.lowering.export import export_for_lowering, rewritten
from qcore.lowering.program import LoweredProgram, run_program
from qcore.lowering.report import LoweringReport, NodeRecord, StrayNode
from qcore.lowering.runner import ExecuTorchRunner, Latency, Runner, Session
from qcore.lowering.specs import TensorSpec

__all__ = [
    "ExecuTorchRunner",
    "Latency",
    "LoweredProgram",
    "LoweringReport",
    "NodeRecord",
    "Runner",
    "Session",
    "StrayNode",
    "TensorSpec",
    "export_for_lowering",
    "import_executorch",
    "lower_with_partitioner",
    "rewritten",
    "run_program",
]
