"""Causal language models for qcore: four bits that read well, decoded with a cache."""

from __future__ import annotations

from qcore_llm.decoder import Decoder
from qcore_llm.errors import GenerationError, LanguageModelError, PerplexityError
from qcore_llm.loading import load_model
from qcore_llm.lowering import lower
from qcore_llm.perplexity import perplexity
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
