"""The schema of what commands answer in JSON, as ``report.schema.json`` beside this file has it.

``python -m qcore_analysis.report_schema > report.schema.json`` writes it anew.
"""

from __future__ import annotations

import json
from typing import Any, Final

from qcore.lowering import Latency
from qcore.report import AnnotationReport, schema
from qcore_analysis.backends import BackendReport
from qcore_analysis.commands.answers import Listed, Quantized, Scaffolded, Schemes, Verified
from qcore_analysis.doctor import Diagnosis
from qcore_analysis.stage_report import StageReport

__all__ = ["ANSWERS", "answers_schema"]

#: What each command answers with ``--json``; ``run`` answers with tensors, see below.
ANSWERS: Final[dict[str, Any]] = {
    "compare": StageReport,
    "matrix": BackendReport,
    "quantize": Quantized,
    "explain": AnnotationReport,
    "verify": Verified,
    "bench": Latency,
    "schemes": Schemes,
    "backends": tuple[Listed, ...],
    "doctor": Diagnosis,
    "new-backend": Scaffolded,
}

_TENSORS: Final = {
    "description": "The answer of ``qcore run``: outputs, or the file that has them.",
    "type": "object",
    "properties": {
        "outputs": {
            "description": "For each sample its outputs, each as nested lists of numbers.",
            "type": "array",
            "items": {"type": "array"},
        },
        "output": {"description": "The file.", "type": "string"},
    },
    "oneOf": [{"required": ["outputs"]}, {"required": ["output"]}],
}


def answers_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what the commands answer."""
    found = schema(*ANSWERS.values())
    found["$defs"]["Tensors"] = _TENSORS
    found["anyOf"].append({"$ref": "#/$defs/Tensors"})
    return found


if __name__ == "__main__":
    print(json.dumps(answers_schema(), indent=2))
