"""What became of a model: one family of reports, data apart from views.

``decisions``, ``lowering``, ``source`` and ``verification`` are data; ``serialize`` and ``text``
are what is made of all of them. In the core because the reports of all backends are alike.
"""

from __future__ import annotations

from qcore.report.base import Report
from qcore.report.decisions import (
    AnnotationReport,
    Decision,
    Diagnostic,
    Severity,
    read_decisions,
    write_decisions,
)
from qcore.report.lowering import LoweringReport, NodeRecord, StrayNode
from qcore.report.serialize import UNSERIALIZED, dump, figure, schema
from qcore.report.source import LayerRecord, SourceReport
from qcore.report.text import as_text, notes
from qcore.report.verification import Verification

__all__ = [
    "REPORTS",
    "UNSERIALIZED",
    "AnnotationReport",
    "Decision",
    "Diagnostic",
    "LayerRecord",
    "LoweringReport",
    "NodeRecord",
    "Report",
    "Severity",
    "SourceReport",
    "StrayNode",
    "Verification",
    "as_text",
    "dump",
    "figure",
    "notes",
    "read_decisions",
    "schema",
    "write_decisions",
]

#: The kinds of report that ``schema.json`` beside this file describes.
REPORTS = (AnnotationReport, LoweringReport, SourceReport, Verification)
