"""What ``qcore llm`` answers with ``--json``, and its schema, ``answers.schema.json`` beside this.

``python -m qcore_llm.answers > answers.schema.json`` writes it anew.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from qcore.report import LoweringReport, SourceReport, schema

__all__ = ["PerplexityFound", "ProgramMade", "answers_schema"]


@attrs.frozen
class ProgramMade:
    """The answer of ``qcore llm quantize``.

    Attributes:
        program: The file that was written.
        bytes: Its size.
        max_context: Longest text in tokens, the size of its cache.
        report: What became of the layers.
        lowering: What became of them in the program.
    """

    program: str
    bytes: int
    max_context: int
    report: SourceReport
    lowering: LoweringReport


@attrs.frozen
class PerplexityFound:
    """The answer of ``qcore llm perplexity``.

    Attributes:
        perplexity: e to the mean surprise at each token; 1 where every one was certain.
        tokens: How many were read.
    """

    perplexity: float
    tokens: int


def answers_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what the commands answer."""
    return schema(ProgramMade, PerplexityFound)


if __name__ == "__main__":
    print(json.dumps(answers_schema(), indent=2))
