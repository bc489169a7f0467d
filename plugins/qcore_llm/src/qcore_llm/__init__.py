"""Causal language models for qcore: four bits that read well, decoded with a cache.

The names below load on first use: the commands answer ``--help`` without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcore_llm.decoder import Decoder
    from qcore_llm.errors import GenerationError, LanguageModelError, PerplexityError
    from qcore_llm.evaluation import perplexity
    from qcore_llm.loading import load_model
    from qcore_llm.lowering import lower
    from qcore_llm.program import LanguageProgram
    from qcore_llm.quantizing import quantize

__all__ = [
    "Decoder",
    "GenerationError",
    "LanguageModelError",
    "LanguageProgram",
    "PerplexityError",
    "load_model",
    "lower",
    "perplexity",
    "quantize",
]

_HOMES = {
    "Decoder": "qcore_llm.decoder",
    "GenerationError": "qcore_llm.errors",
    "LanguageModelError": "qcore_llm.errors",
    "LanguageProgram": "qcore_llm.program",
    "PerplexityError": "qcore_llm.errors",
    "load_model": "qcore_llm.loading",
    "lower": "qcore_llm.lowering",
    "perplexity": "qcore_llm.evaluation",
    "quantize": "qcore_llm.quantizing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
