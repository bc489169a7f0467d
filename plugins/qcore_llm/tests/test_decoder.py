"""Language models with a cache: they compute what they compute without, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AfmoeConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import qcore_llm
from qcore_llm import Decoder, LanguageModelError
from qcore_llm.attention import FORMS, PLAIN, form_for
from qcore_llm.decoder import Scorer

CONTEXT = 48

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


def llama() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).eval()


def qwen2() -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES)).eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias)
    return model


def qwen3() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen3Config(**SIZES)).eval()


def gemma2() -> Any:
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    caps = {"attn_logit_softcapping": 0.05, "final_logit_softcapping": 0.5}
    config = Gemma2Config(**SIZES, **caps, sliding_window=6, layer_types=layers)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("q_proj.weight"):
            nn.init.normal_(weight)
    return model


def gemma3() -> Any:
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=layers)
    return Gemma3ForCausalLM(config).eval()


def afmoe() -> Any:
    """Attention with a gate behind it, in layers that slide and layers that do not."""
    torch.manual_seed(0)
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    layers = ["sliding_attention", "full_attention"]
    config = AfmoeConfig(**SIZES, **experts, sliding_window=6, layer_types=layers)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("gate_proj.weight"):
            nn.init.normal_(weight)
    return model


@pytest.mark.parametrize("form", ["plain", *FORMS])
@pytest.mark.parametrize("make", [llama, qwen2, qwen3, gemma2, gemma3, afmoe])
def test_reading_token_by_token_gives_the_models_own_logits(make: Any, form: str) -> None:
    model = make()
    decoder = Decoder(model, CONTEXT, form_for(form))
    tokens = torch.randint(0, 64, (1, 20))
    with torch.no_grad():
        expected = Scorer(model)(tokens)[0]
        found = [decoder(tokens[:, :12], torch.tensor([0]))]
        found += [decoder(tokens[:, i : i + 1], torch.tensor([i])) for i in range(12, 20)]
    torch.testing.assert_close(torch.cat(found), expected[11:], atol=1e-4, rtol=1e-4)


def test_the_model_attends_as_before_outside_of_the_decoder() -> None:
    model = llama()
    before = model.config._attn_implementation
    Decoder(model, CONTEXT)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1),
            r"model\.layers\.0\.self_attn \(GptOssAttention\) .* attention with sinks",
        ),
        (
            Qwen3NextConfig(
                **SIZES,
                num_experts=2,
                num_experts_per_tok=1,
                layer_types=["full_attention", "linear_attention"],
            ),
            r"model\.layers\.1\.linear_attn \(Qwen3NextGatedDeltaNet\) .* state other than keys",
        ),
        (
            MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=32, state_size=4),
            r"backbone\.layers\.0\.mixer \(MambaMixer\) keeps no keys and values, one of 2",
        ),
        (
            RecurrentGemmaConfig(**SIZES, lru_width=32, block_types=["attention", "recurrent"]),
            r"model\.layers\.1 \(RecurrentGemmaDecoderLayer\) keeps no keys and values",
        ),
        (
            BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
            r"something else with a cache .* transformer\.h\.0\.self_attention \(BloomAttention\)",
        ),
    ],
    ids=["sinks", "gated delta rule", "state space", "recurrent", "position bias"],
)
def test_attention_that_has_no_form_with_a_cache_is_refused_with_its_module(
    config: Any, message: str
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(LanguageModelError, match=message):
        Decoder(model, CONTEXT)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=32)
    with pytest.raises(LanguageModelError, match=r"an encoder with a decoder: encoder \(T5Stack\)"):
        Decoder(T5ForConditionalGeneration(config).eval(), CONTEXT)


def test_attention_that_looks_elsewhere_is_refused() -> None:
    model = llama()

    class Remembers(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states: torch.Tensor, **others: Any) -> Any:
            # Each token knows all before it.
            return self.inner(hidden_states=hidden_states.cumsum(1), **others)

    for layer in model.model.layers:
        layer.self_attn = Remembers(layer.self_attn)
    place = r"model\.layers\.0\.self_attn \(Remembers\)"
    with pytest.raises(LanguageModelError, match=f"something else with a cache .* by {place}"):
        Decoder(model, CONTEXT)


def test_a_cache_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(LanguageModelError, match="reads texts of 2 to 64 tokens"):
        Decoder(llama(), 65)


@pytest.mark.parametrize("make", [gemma2, gemma3])
def test_an_embedding_that_scales_its_rows_is_quantized(make: Any) -> None:
    model = make()
    tokens = torch.randint(0, 64, (1, 20))
    expected = model.get_input_embeddings()(tokens)
    report = qcore_llm.quantize(model, scheme="8da8w")
    embedding = model.get_input_embeddings()
    torch.testing.assert_close(embedding(tokens), expected, atol=0.02, rtol=0.0)
    assert report["model.model.embed_tokens"].scheme == "8w per-axis"
    assert report["model.lm_head"].tied_with == "model.model.embed_tokens"


def test_an_embedding_of_fewer_bits_than_the_head_is_a_weight_of_its_own() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()
    report = qcore_llm.quantize(model, embedding="4w per-group 32")
    assert report["model.model.embed_tokens"].scheme == "4w per-group 32"
    assert report["model.lm_head"].scheme == "8da8w per-axis"
    assert report["model.lm_head"].tied_with == ""


def test_scores_with_a_cap_take_the_plain_form_of_attention() -> None:
    assert Decoder(gemma2(), CONTEXT, form_for("xnnpack")).form is PLAIN
    assert Decoder(gemma3(), CONTEXT, form_for("xnnpack")).form is FORMS["xnnpack"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [qwen3, gemma2, gemma3])
def test_a_program_reads_as_its_quantized_model_does(make: Any) -> None:
    model = make()
    tokens = torch.randint(0, 64, (80,), generator=torch.Generator().manual_seed(1))
    qcore_llm.quantize(model, algorithm="mse")
    program = qcore_llm.lower(model, max_context=CONTEXT)
    wanted = qcore_llm.perplexity(model, tokens, length=40)
    assert qcore_llm.perplexity(program, tokens, length=40) == pytest.approx(wanted, rel=0.01)
