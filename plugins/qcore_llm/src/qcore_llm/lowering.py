"""From a quantized language model to a program that writes text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.export import Dim

import qcore
from qcore_llm.attention import PLAIN, form_for
from qcore_llm.decoder import Decoder
from qcore_llm.errors import PerplexityError
from qcore_llm.evaluation import perplexity
from qcore_llm.program import LanguageProgram
from qcore_llm.text import WINDOW

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["lower"]

#: Length of the cache where nobody says, in tokens.
_CONTEXT: Final = 2048

#: Tokens that a model is captured and checked with.
_EXAMPLE: Final = 4


def lower(
    model: PreTrainedModel,
    backend: str = "xnnpack",
    *,
    tokenizer: Any = None,
    max_context: int | None = None,
    max_perplexity_ratio: float | None = None,
    reference: PreTrainedModel | float | None = None,
    text: torch.Tensor | None = None,
    **options: Any,
) -> LanguageProgram:
    """Make a program of a language model, with a cache.

    Args:
        model: The model of transformers, as :func:`quantize` or ``qcore.quantize_`` left it.
        backend: Name of the backend.
        tokenizer: Its tokenizer, which goes into the program; without one it takes token numbers.
        max_context: The longest text in tokens, which is the size of the cache; None takes 2048,
            or what the model reads where that is less.
        max_perplexity_ratio: The largest perplexity of the executed program on ``text``, as a
            multiple of that of ``reference``; None measures nothing.
        reference: The float model, or its perplexity on ``text`` in windows of 256 tokens, or of
            ``max_context`` where that is less.
        text: Token numbers [any] that calibration has not seen, int64.
        **options: Options of the backend's ``lower``.

    Returns:
        The program. ExecuTorch's own runners read it, too.

    Raises:
        LanguageModelError: The model is of a kind that has no form with a cache.
        PerplexityError: The program reads the text too badly.
        LoweringError: The model cannot be lowered.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = max_context or min(_CONTEXT, limit or _CONTEXT)
    if max_perplexity_ratio is not None and (reference is None or text is None):
        raise PerplexityError(
            "max_perplexity_ratio compares with the float model on text. Pass reference=, the "
            "model or its perplexity, and text=, token numbers."
        )
    form = form_for(backend)
    decoder = Decoder(model, context, form)
    length = min(_EXAMPLE, context)
    example = torch.arange(length)[None] % decoder.vocabulary
    program = qcore.get_quantizer(backend).lower(
        decoder,
        (example, torch.tensor([0])),
        dynamic_shapes={"tokens": {1: Dim("length", min=1, max=context)}, "input_pos": None},
        constant_methods=_metadata(decoder, tokenizer, context, decoder.form is not PLAIN),
        **options,
    )
    made = LanguageProgram.of(
        program,
        max_context=context,
        vocabulary=decoder.vocabulary,
        ends=_ends(model),
        tokenizer=tokenizer,
        lowered=program,
    )
    if max_perplexity_ratio is not None and reference is not None and text is not None:
        _require_ratio(made, reference, text, max_perplexity_ratio)
    return made


def _metadata(decoder: Decoder, tokenizer: Any, context: int, custom: bool) -> dict[str, Any]:
    """Return what ExecuTorch's runners for text ask a program for, and the tokenizer."""
    begin = decoder.model.config.get_text_config().bos_token_id
    found: dict[str, Any] = {
        "get_max_seq_len": context,
        "get_max_context_len": context,
        "get_n_layers": decoder.layers,
        "get_vocab_size": decoder.vocabulary,
        "get_bos_id": -1 if begin is None else begin,
        "get_eos_ids": list(_ends(decoder.model)),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": custom,
        "enable_dynamic_shape": True,
    }
    if tokenizer is not None:
        found[LanguageProgram.TOKENIZER] = LanguageProgram.stored(tokenizer)
    return found


def _ends(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the tokens that end a text, of the generation's configuration where it has some."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.config.get_text_config().eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, (list, tuple)) else (int(ends),)


def _require_ratio(
    program: LanguageProgram, reference: PreTrainedModel | float, text: torch.Tensor, limit: float
) -> None:
    """Raise where a program reads a text worse than so many times the float model."""
    # Shorter windows are harder to read: both get the same.
    length = min(WINDOW, program.max_context)
    is_known = isinstance(reference, (int, float))
    exact = reference if is_known else perplexity(reference, text, length=length)
    found = perplexity(program, text, length=length)
    if not found <= limit * exact:
        raise PerplexityError(
            f"The program's perplexity is {found:.2f}, {found / exact:.2f} times the float model's "
            f"{exact:.2f}; {limit:g} was asked for. Quantize with algorithm='gptq' and text of the "
            "kind that it is to read, or with more bits, as '8da8w'."
        )
