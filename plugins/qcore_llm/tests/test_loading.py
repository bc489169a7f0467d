"""Language models from GGUF files: whole ones are read, and what is cut off is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from qcore_llm import LanguageModelError, load_model

#: What transformers calls a block's weights, and a GGUF file.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}


@pytest.fixture(scope="session")
def whole(float_llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama as a GGUF file, its norms and what attention reads at their defaults."""
    path: Path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = float_llama.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(inner["vocab"], key=inner["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in float_llama.named_parameters():
        stem = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, rest = stem.partition(".")
        theirs = f"blk.{layer}.{NAMES[rest]}" if layer.isdigit() else NAMES[stem]
        writer.add_tensor(f"{theirs}.weight", weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_read_with_its_tokenizer(whole: Path, float_llama: Any) -> None:
    model, tokenizer = load_model(whole)
    table = model.get_input_embeddings().weight
    assert torch.equal(table, float_llama.get_input_embeddings().weight)
    assert tokenizer.decode(tokenizer("def")["input_ids"]) == "def"


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.999], ids=["header", "key", "tensor", "end"])
def test_a_gguf_file_that_is_cut_short_is_said_to_be(
    whole: Path, tmp_path: Path, share: float
) -> None:
    data = whole.read_bytes()
    part = tmp_path / "model.gguf"
    part.write_bytes(data[: int(share * len(data))])
    with pytest.raises(LanguageModelError, match=r"model\.gguf is cut short or damaged"):
        load_model(part)
