"""From a quantized model to a program: what a compiler of any kind needs, and a way to run it.

Importing this package does not import torch; it loads when something is lowered or run.
"""

from __future__ import annotations

from qcore.lowering.artifact import ARTIFACTS, Artifact, artifact_of
from qcore.lowering.export import export_for_lowering, private_copy, recorded_module_path
from qcore.lowering.options import check_options
from qcore.lowering.process import ChildProcess
from qcore.lowering.program import LoweredProgram, run_program
from qcore.lowering.runner import Latency, NoRunner, Runner, Session
from qcore.lowering.saved import Saved
from qcore.lowering.specs import (
    TensorSpec,
    held_tensors,
    program_specs,
    spec_of,
    user_input_names,
)
from qcore.report import LoweringReport, NodeRecord, StrayNode

__all__ = [
    "ARTIFACTS",
    "Artifact",
    "ChildProcess",
    "Latency",
    "LoweredProgram",
    "LoweringReport",
    "NoRunner",
    "NodeRecord",
    "Runner",
    "Saved",
    "Session",
    "StrayNode",
    "TensorSpec",
    "artifact_of",
    "check_options",
    "export_for_lowering",
    "held_tensors",
    "private_copy",
    "program_specs",
    "recorded_module_path",
    "run_program",
    "spec_of",
    "user_input_names",
]
