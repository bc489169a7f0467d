"""Language models from files: a folder that transformers loads, or a GGUF file."""

from __future__ import annotations

import io
import json
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
            weights are dequantized. A folder with weights of GPTQ, AWQ or compressed-tensors keeps
            their integers and scales.

    Returns:
        The model in float32, in evaluation mode, and its tokenizer.

    Raises:
        LanguageModelError: There is no such file, it holds no language model, or packed weights
            that :func:`qcore.quantize_` cannot take.
    """
    source = Path(path)
    if not source.exists():
        raise LanguageModelError(
            f"There is no {source}. Pass a folder with a language model, as "
            "save_pretrained() of transformers writes it, or a GGUF file."
        )
    with quiet():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from qcore_llm.packed import METHODS

        folder, more = (source, {}) if source.is_dir() else (source.parent, _gguf(source))
        try:
            with _no_bars_in_logs():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **more)
                config = None if more else AutoConfig.from_pretrained(folder, local_files_only=True)
                if _method(config) in METHODS:
                    model = _packed_model(folder, config)
                else:
                    model = AutoModelForCausalLM.from_pretrained(
                        folder, local_files_only=True, dtype=torch.float32, **more
                    )
        except LanguageModelError:
            raise
        except Exception as error:
            if more and (problem := _problem_of(source)):
                raise LanguageModelError(
                    f"{source} is cut short or damaged: {problem}. Get the file again."
                ) from error
            first = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
            raise LanguageModelError(
                f"transformers reads no language model from {source}: {type(error).__name__}: "
                f"{first}. Where it is complete, "
                "transformers.AutoModelForCausalLM.from_pretrained says more."
            ) from error
    return model.eval(), tokenizer


def _method(config: Any) -> str | None:
    """Return the name of the method that the weights were quantized with, if they were."""
    return (getattr(config, "quantization_config", None) or {}).get("quant_method")


def _packed_model(folder: Path, config: Any) -> PreTrainedModel:
    """Return a model whose linear layers keep the integers and scales of the checkpoint."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    from qcore_llm.packed import take_packed_weights

    tensors = _tensors(folder)
    weights = take_packed_weights(tensors, config.quantization_config)
    del config.quantization_config
    # What is packed gets a weight that takes no memory until its own is there.
    nothing = torch.zeros(())
    empty = {f"{name}.weight": nothing.expand(weight.shape) for name, weight in weights.items()}
    model, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=tensors | empty,
        dtype=torch.float32,
        output_loading_info=True,
    )
    lost = {*found["missing_keys"], *(found["unexpected_keys"] & empty.keys())}
    if lost:
        raise LanguageModelError(
            f"{type(model).__name__} and the tensors in {folder} do not match: {min(lost)}, one of "
            f"{len(lost)}. Start from the float model that the checkpoint was made of."
        )
    for name, weight in weights.items():
        model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _tensors(folder: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint's files."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        raise LanguageModelError(f"{folder} has no *.safetensors. Other files are not read.")
    return {key: value for name in names for key, value in load_file(folder / name).items()}


def _gguf(source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LanguageModelError(
                f"{source} is no GGUF file. Pass one, or the folder of a language model."
            )
    return {"gguf_file": source.name}


def _problem_of(source: Path) -> str:
    """Return why a GGUF file's header and tensors cannot be read; empty where they can."""
    from gguf import GGUFReader

    try:
        GGUFReader(source)
    except Exception as error:
        return str(error).rstrip(".") or type(error).__name__
    return ""


def _no_bars_in_logs() -> AbstractContextManager[Any]:
    """Let transformers and its reader of GGUF show how far they are on a terminal only."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
