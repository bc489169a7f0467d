"""Schemes of whole language models: layers, embedding and head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

import qcore
from qcore.source import is_quantized
from qcore_llm.decoder import Scorer
from qcore_llm.errors import LanguageModelError
from qcore_llm.rotation import rotate as turn
from qcore_llm.text import calibration_windows, check_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qcore.report import SourceReport

__all__ = ["quantize"]

#: Backend -> schemes of the embedding and of the head, where they differ from the layers'. Eight
#: bits: a head of four costs more perplexity than all layers together.
_ENDS: Final[dict[str, tuple[str | None, str | None]]] = {"xnnpack": ("8w", "8da8w")}

#: Windows of calibration text.
_WINDOWS: Final = 16


def quantize(
    model: PreTrainedModel,
    backend: str = "xnnpack",
    scheme: str = "8da4w",
    *,
    algorithm: Any = None,
    tokens: torch.Tensor | None = None,
    embedding: str | None = None,
    rotate: bool | None = None,
    **more: Any,
) -> SourceReport:
    """Quantize a language model in place, its embedding and head as fits the backend.

    Args:
        model: The float model of transformers, or one whose layers :func:`load_model` has read from
            a quantized checkpoint: these keep their integers and scales.
        backend: Name of the backend.
        scheme: For the linear layers, as ``qcore.quantize_`` takes it.
        algorithm: As ``qcore.quantize_`` takes it; None takes ``"gptq"`` with ``tokens`` and
            ``"mse"`` without.
        tokens: Token numbers [any] of text to calibrate on, int64; best of the kind that the model
            is to read.
        embedding: Scheme of the embedding; None takes what fits the backend. Another than the
            head's makes two weights of one that they share.
        rotate: Whether the values that run through the model are turned first, the same function
            with no channel far larger than the others (:func:`qcore_llm.rotation.rotate`); None
            does so with ``tokens``, where the model permits it.
        **more: As ``qcore.quantize_`` takes it; ``rules`` replace those for embedding and head.

    Returns:
        What became of every layer.

    Raises:
        LanguageModelError: The model does not have some of the tokens, or cannot be turned.
        QcoreError: As ``qcore.quantize_``.
    """
    if algorithm is None:
        algorithm = "mse" if tokens is None else "gptq"
    data = None
    if tokens is not None:
        check_tokens(tokens, model.config.get_text_config().vocab_size, LanguageModelError)
        data = [window[None] for window in calibration_windows(tokens, _WINDOWS)]
    _scale_behind(model.get_input_embeddings())
    unfit = turn(model) if rotate or (rotate is None and tokens is not None) else ""
    if rotate and unfit:
        raise LanguageModelError(f"{unfit}. Leave rotate out.")
    scorer = Scorer(model)
    more.setdefault("rules", _rules(model, scorer, backend, embedding))
    return qcore.quantize_(
        scorer, backend, scheme, algorithm=algorithm, calibration_data=data, **more
    )


def _scale_behind(embedding: nn.Module) -> None:
    """Make an embedding that scales its rows, as Gemma's, a plain one with the factor behind it."""
    kind = type(embedding)
    if kind.forward is nn.Embedding.forward or not hasattr(embedding, "embed_scale"):
        return
    row = torch.zeros(1, dtype=torch.int64)
    expected = embedding(row)
    embedding.__class__ = nn.Embedding
    handle = embedding.register_forward_hook(_scaled)
    if not torch.equal(embedding(row), expected):
        handle.remove()
        embedding.__class__ = kind


def _scaled(embedding: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    del inputs
    return output * embedding.embed_scale


def _rules(
    model: PreTrainedModel, scorer: nn.Module, backend: str, wanted: str | None
) -> dict[Any, str | None]:
    embedding, head = _ENDS.get(backend, (None, None))
    embedding = wanted or embedding
    rules: dict[Any, str | None] = {}
    if embedding is not None:
        rules[nn.Embedding] = embedding
    layer = model.get_output_embeddings()
    name = next((n for n, module in scorer.named_modules() if module is layer), None)
    if head is not None and name is not None and not is_quantized(layer):
        rules[name] = head
    return rules
