"""A small Llama with a tokenizer, quantized and lowered once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import qcore_llm
from qcore_llm.text import documentation

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [documentation()[:20_000]],
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=alphabet,
            special_tokens=["<end>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", bos_token="<end>", chat_template=CHAT
    )


def _llama() -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


@pytest.fixture(scope="session")
def small_llama() -> Callable[[], Any]:
    return _llama


@pytest.fixture(scope="session")
def float_llama() -> Any:
    return _llama()


@pytest.fixture(scope="session")
def quantized_llama(float_llama: Any) -> Any:
    model = copy.deepcopy(float_llama)
    qcore_llm.quantize(model, algorithm="mse")
    return model


@pytest.fixture(scope="session")
def program(quantized_llama: Any, tokenizer: Any) -> Any:
    return qcore_llm.lower(quantized_llama, tokenizer=tokenizer, max_context=48, check=False)


@pytest.fixture(scope="session")
def saved(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = program.save(tmp_path_factory.mktemp("llm") / "model.pte")
    return path


@pytest.fixture(scope="session")
def folder(float_llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float")
    float_llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
