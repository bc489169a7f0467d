"""Language models from files: a folder that transformers loads, or a GGUF file."""

from __future__ import annotations

import io
import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcore.quiet import quiet
from qcore_llm.errors import LanguageModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_model"]


def load_model(path: str | os.PathLike[str]) -> tuple[PreTrainedModel, Any]:
    """Read a causal language model and its tokenizer. Nothing is downloaded, no code is run.

    Args:
        path: A folder that ``transformers.AutoModelForCausalLM`` loads, or a GGUF file, whose
            weights are dequantized.

    Returns:
        The model in float32, in evaluation mode, and its tokenizer.

    Raises:
        LanguageModelError: There is no such file, or it holds no language model.
    """
    source = Path(path)
    if not source.exists():
        raise LanguageModelError(
            f"There is no {source}. Pass a folder with a language model, as "
            "save_pretrained() of transformers writes it, or a GGUF file."
        )
    with quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, more = (source, {}) if source.is_dir() else (source.parent, _gguf(source))
        try:
            with _no_bars_in_logs():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **more)
                model = AutoModelForCausalLM.from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32, **more
                )
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise LanguageModelError(
                f"transformers reads no language model from {source}: {type(error).__name__}: "
                f"{first}. Where it is complete, "
                "transformers.AutoModelForCausalLM.from_pretrained says more."
            ) from error
    return model.eval(), tokenizer


def _gguf(source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LanguageModelError(
                f"{source} is no GGUF file. Pass one, or the folder of a language model."
            )
    return {"gguf_file": source.name}


def _no_bars_in_logs() -> AbstractContextManager[Any]:
    """Let transformers and its reader of GGUF show how far they are on a terminal only."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
