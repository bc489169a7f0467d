"""The schema of this distribution's reports, as ``report.schema.json`` beside this file has it.

``python -m qcore_analysis.report_schema > report.schema.json`` writes it anew.
"""

from __future__ import annotations

import json

from qcore.report import schema
from qcore_analysis.backends import BackendReport
from qcore_analysis.stage_report import StageReport

__all__ = ["REPORTS"]

#: The kinds of report that ``qcore compare`` and ``qcore matrix`` give.
REPORTS = (StageReport, BackendReport)

if __name__ == "__main__":
    print(json.dumps(schema(*REPORTS), indent=2))
