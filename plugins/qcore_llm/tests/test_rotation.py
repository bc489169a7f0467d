"""What runs through a model is turned: the same function, without channels larger than others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OlmoConfig,
    Qwen2Config,
    Qwen3Config,
)

import qcore_llm
from qcore_llm.rotation import rotate, turned

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
TOKENS = torch.arange(24)[None] * 5 % 64


def made(config: Any) -> Any:
    """A model whose norms and biases do something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1:
            nn.init.normal_(tensor, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


@torch.no_grad()
def distance(model: Any, other: Any) -> float:
    expected, found = model(TOKENS).logits, other(TOKENS).logits
    return float((found - expected).norm() / expected.norm())


@given(size=st.integers(1, 96))
def test_turning_keeps_lengths_and_is_its_own_inverse(size: int) -> None:
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turned(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-4)
    assert torch.allclose(turned(turned(x)), x, atol=1e-5)


@pytest.mark.parametrize("size", [576, 960, 2048])
def test_turning_spreads_each_channel_over_all(size: int) -> None:
    assert turned(torch.eye(size)).abs().max() < 1.5 * size**-0.5


def test_turning_is_the_same_to_the_bit_on_any_number_of_threads() -> None:
    x, threads = torch.randn(512, 576), torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(turned(x))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_a_turned_model_is_the_same_function(kind: Any, is_tied: bool) -> None:
    model = made(kind(**SIZES, tie_word_embeddings=is_tied))
    other = copy.deepcopy(model)
    assert rotate(other) == ""
    assert distance(model, other) < 1e-5
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == is_tied


def test_a_channel_that_is_larger_than_others_is_so_no_more() -> None:
    model = made(LlamaConfig(**SIZES))
    model.model.layers[0].mlp.down_proj.weight.data[7] *= 1000

    def peak() -> float:
        stream = model.model(TOKENS, output_hidden_states=True).hidden_states[1]
        return float((stream.abs().amax(-1) / stream.square().mean(-1).sqrt()).mean())

    with torch.no_grad():
        before = peak()
        rotate(model)
        assert before > 5
        assert peak() < 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma3TextConfig(**SIZES), "Gemma3DecoderLayer has the parts"),
        (MixtralConfig(**SIZES), "MixtralDecoderLayer computes more"),
        (OlmoConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}), "OlmoForCausalLM"),
        (GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64), "GPT2LMHeadModel"),
    ],
    ids=["norms behind", "experts", "norms without a weight", "other names"],
)
def test_a_model_that_cannot_be_turned_is_left_as_it_was_with_a_reason(
    config: Any, reason: str
) -> None:
    model = made(config)
    other = copy.deepcopy(model)
    assert reason in rotate(other)
    assert distance(model, other) < 1e-5


def test_a_block_that_computes_more_than_its_layers_say_is_turned_back() -> None:
    model = made(LlamaConfig(**SIZES))
    layer = model.model.layers[1]  # The first one is turned by then, and turned back.
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: plain(x) + 0.1 * x.flip(-1)
    expected = model(TOKENS).logits.detach()
    assert rotate(model).endswith("LlamaDecoderLayer computes more")
    assert torch.allclose(model(TOKENS).logits, expected, atol=1e-4)


def test_weights_that_are_quantized_already_are_not_turned(float_llama: Any) -> None:
    model = copy.deepcopy(float_llama)
    qcore_llm.quantize(model)
    assert "not all of its weights are in float32" in rotate(model)


def test_who_asks_for_turning_is_told_where_that_is_impossible() -> None:
    with pytest.raises(qcore_llm.LanguageModelError, match="is not turned.*Leave rotate out"):
        qcore_llm.quantize(made(Gemma3TextConfig(**SIZES)), rotate=True)


def test_text_to_calibrate_on_turns_a_model_and_its_program_computes_what_it_does(
    small_llama: Callable[[], Any],
) -> None:
    model = small_llama()
    tokens = torch.arange(2048) * 7 % 320
    qcore_llm.quantize(model, tokens=tokens, progress=False)
    assert "mixing" in dict(model.model.norm.named_buffers())
    program = qcore_llm.lower(model, max_context=48, check=False)
    text = tokens[:96]
    executed = qcore_llm.perplexity(program, text, quiet=True)
    eager = qcore_llm.perplexity(model, text, length=48, quiet=True)
    assert executed == pytest.approx(eager, rel=0.02)
