"""What became of a model: decisions, lowering, source quantization. Data apart from views."""

from __future__ import annotations

from qcore.report.decisions import (
    AnnotationReport,
    Decision,
    Diagnostic,
    Severity,
    read_decisions,
    write_decisions,
)
from qcore.report.lowering import LoweringReport, NodeRecord, StrayNode
from qcore.report.source import LayerRecord, SourceReport

__all__ = [
    "AnnotationReport",
    "Decision",
    "Diagnostic",
    "LayerRecord",
    "LoweringReport",
    "NodeRecord",
    "Severity",
    "SourceReport",
    "StrayNode",
    "read_decisions",
    "write_decisions",
]
