"""Take small random models of transformers' architectures all the way, and print a table.

Weights, tokens and positions are drawn. Each model is quantized, lowered, executed and compared in
a process of its own with a time limit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from attrs import evolve, frozen
from torch import nn
from tqdm import tqdm

import qcore
from qcore.testing.fuzz import Kind, Outcome
from qcore.testing.fuzz.outcome import FLOWS
from qcore.testing.fuzz.workers import Worker
from qcore.testing.support import with_parts, write_pages

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
TOKENS, VOCABULARY, SIDE = 12, 96, 32
Inputs = dict[str, torch.Tensor]
# What tokens are on a backend that has no 64-bit integers.
_INTEGERS: Final = {"ethosu": torch.int32}

# Sizes under the names that most configurations have.
_TEXT: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED: Final = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_VISION: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
_T5: Final = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}
_SWIN: Final = {
    "image_size": SIDE,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
_AUDIO: Final = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_SERIES: Final = {
    "prediction_length": 8,
    "context_length": 32,
    "num_input_channels": 3,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "ffn_dim": 64,
}


def _tokens() -> Inputs:
    return {"input_ids": torch.randint(1, VOCABULARY, (1, TOKENS))}


def _masked_tokens() -> Inputs:
    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[:, TOKENS - int(torch.randint(0, 4, ())) :] = 0
    return {**_tokens(), "attention_mask": mask}


def _placed_tokens() -> Inputs:
    first = int(torch.randint(0, 32, ()))
    return {**_tokens(), "position_ids": torch.arange(first, first + TOKENS)[None]}


def _two_texts() -> Inputs:
    return {**_tokens(), "decoder_input_ids": torch.randint(1, VOCABULARY, (1, TOKENS // 2))}


def _picture() -> Inputs:
    return {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}


def _large_picture() -> Inputs:
    return {"pixel_values": torch.randn(1, 3, 2 * SIDE, 2 * SIDE)}


def _sound() -> Inputs:
    return {"input_values": torch.randn(1, 800)}


def _spectrum() -> Inputs:
    return {"input_values": torch.randn(1, 64, 16)}


def _features() -> Inputs:
    return {
        "input_features": torch.randn(1, 16, 64),
        "decoder_input_ids": torch.randint(1, VOCABULARY, (1, TOKENS // 2)),
    }


def _series() -> Inputs:
    return {"past_values": torch.randn(1, 32, 3)}


def _series_and_time() -> Inputs:
    return {
        "past_values": torch.randn(1, 39),
        "past_time_features": torch.randn(1, 39, 2),
        "past_observed_mask": torch.ones(1, 39),
        "future_time_features": torch.randn(1, 8, 2),
    }


def _text_and_picture() -> Inputs:
    return {**_tokens(), **_picture()}


@frozen
class Architecture:
    """A class of transformers, the sizes of its configuration, and what draws a sample."""

    model: str
    sizes: dict[str, Any]
    draw: Callable[[], Inputs]
    configuration: str = ""
    seed: int = 0
    integers: torch.dtype = torch.int64

    def build(self) -> dict[str, Any]:
        """Return the model with random weights, and three samples."""
        import transformers

        torch.manual_seed(self.seed)
        family = re.sub("(For(?!mer)[A-Z].*|(LMHead|Encoder|Vision)?Model)$", "", self.model)
        configuration = getattr(transformers, self.configuration or f"{family}Config")
        model = getattr(transformers, self.model)(configuration(**self.sizes)).eval()
        # As drawn by transformers, norms do nothing and outputs hardly depend on inputs.
        for parameter in model.parameters():
            mean = float(parameter.detach().mean()) if parameter.dim() < 2 else 0.0
            width = parameter[0].numel() if parameter.dim() > 1 else 150
            nn.init.normal_(parameter, mean, (1.5 / width) ** 0.5)
        samples = [{k: self._sized(v) for k, v in self.draw().items()} for _ in range(3)]
        return {"model": Main(model), "samples": samples, "dynamic_shapes": None}

    def _sized(self, value: torch.Tensor) -> torch.Tensor:
        return value if value.is_floating_point() else value.to(self.integers)


class Main(nn.Module):
    """Returns a model's main output: caches and hidden states are no results."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Run the model."""
        cached = {"use_cache": False} if "input_ids" in inputs else {}
        outputs = self.model(**inputs, **(cached if "pixel_values" not in inputs else {}))
        values = [outputs[name] for name in _MAIN if name in outputs]
        result: torch.Tensor = values[0] if values else outputs[0]
        return result[0] if isinstance(result, tuple) else result


_MAIN: Final = ("logits", "logits_per_image", "reconstruction", "prediction_outputs")

ARCHITECTURES: Final = (
    Architecture("BertForSequenceClassification", _TEXT, _masked_tokens),
    Architecture("DistilBertForSequenceClassification", {**_TEXT, "dim": 32, "hidden_dim": 64,
                 "n_layers": 2, "n_heads": 4}, _masked_tokens),
    Architecture("RobertaForMaskedLM", _TEXT, _tokens),
    Architecture("AlbertForMaskedLM", {**_TEXT, "embedding_size": 16}, _tokens),
    Architecture("ElectraForSequenceClassification", {**_TEXT, "embedding_size": 16},
                 _masked_tokens),
    Architecture("MPNetForMaskedLM", _TEXT, _tokens),
    Architecture("DebertaV2ForMaskedLM", {**_TEXT, "relative_attention": True,
                 "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, _tokens),
    Architecture("ModernBertForMaskedLM", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2,
                 "bos_token_id": 1, "eos_token_id": 2}, _tokens),
    Architecture("SqueezeBertForMaskedLM", {**_TEXT, "embedding_size": 32}, _tokens),
    Architecture("MobileBertForMaskedLM", {**_TEXT, "embedding_size": 16,
                 "intra_bottleneck_size": 16, "true_hidden_size": 16}, _tokens),
    Architecture("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2,
                 "n_head": 4, "n_positions": 64}, _tokens),
    Architecture("GPTNeoXForCausalLM", _TEXT, _tokens),
    Architecture("OPTForCausalLM", {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}, _tokens),
    Architecture("LlamaForCausalLM", _GROUPED, _placed_tokens),
    Architecture("MistralForCausalLM", {**_GROUPED, "sliding_window": 8}, _tokens),
    Architecture("Qwen2ForCausalLM", _GROUPED, _tokens),
    Architecture("Qwen3ForCausalLM", _GROUPED, _placed_tokens),
    Architecture("Gemma2ForCausalLM", _GROUPED, _tokens),
    Architecture("PhiForCausalLM", _TEXT, _tokens),
    Architecture("T5ForConditionalGeneration", _T5, _two_texts),
    Architecture("T5EncoderModel", _T5, _masked_tokens),
    Architecture("BartForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": 32,
                 "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
                 "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
                 "decoder_attention_heads": 4, "max_position_embeddings": 64}, _two_texts),
    Architecture("ViTForImageClassification", _VISION, _picture),
    Architecture("DeiTForImageClassification", _VISION, _picture),
    Architecture("BeitForImageClassification", _VISION, _picture),
    Architecture("Dinov2ForImageClassification", _VISION, _picture),
    Architecture("SwinForImageClassification", _SWIN, _picture),
    Architecture("Swinv2ForImageClassification", _SWIN, _picture),
    Architecture("Swin2SRForImageSuperResolution", {**_SWIN, "patch_size": 1, "image_size": 16,
                 "upscale": 2}, _picture),
    Architecture("SegformerForSemanticSegmentation", {"num_encoder_blocks": 2, "depths": [1, 1],
                 "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
                 "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                 "decoder_hidden_size": 32}, _picture),
    Architecture("MobileViTForImageClassification", {"image_size": 2 * SIDE,
                 "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]},
                 _large_picture),
    Architecture("ConvNextForImageClassification", {"hidden_sizes": [8, 16, 24, 32],
                 "depths": [1, 1, 1, 1]}, _picture),
    Architecture("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
                 "depths": [1, 1]}, _picture),
    Architecture("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}, _large_picture),
    Architecture("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}, _large_picture),
    Architecture("PoolFormerForImageClassification", {"hidden_sizes": [8, 16, 24, 32],
                 "depths": [1, 1, 1, 1]}, _picture),
    Architecture("RegNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
                 "depths": [1, 1], "groups_width": 8}, _picture),
    Architecture("LevitForImageClassification", {"image_size": 2 * SIDE,
                 "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
                 "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
                 _large_picture),
    Architecture("DPTForDepthEstimation", {**_VISION, "num_hidden_layers": 4,
                 "backbone_out_indices": [0, 1, 2, 3],
                 "neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16,
                 "reassemble_factors": [4, 2, 1, 0.5]}, _picture),
    Architecture("CLIPModel", {"text_config": {**_TEXT, "bos_token_id": 1, "eos_token_id": 2},
                 "vision_config": _VISION, "projection_dim": 16}, _text_and_picture),
    Architecture("SiglipVisionModel", _VISION, _picture, "SiglipVisionConfig"),
    Architecture("Wav2Vec2ForCTC", _AUDIO, _sound),
    Architecture("HubertForCTC", _AUDIO, _sound),
    Architecture("ASTForAudioClassification", {**_VISION, "max_length": 64, "num_mel_bins": 16},
                 _spectrum),
    Architecture("WhisperForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": 32,
                 "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
                 "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                 "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32,
                 "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                 "decoder_start_token_id": 1}, _features),
    Architecture("PatchTSTForPrediction", _SERIES, _series),
    Architecture("PatchTSMixerForPrediction", _SERIES, _series),
    Architecture("TimeSeriesTransformerModel", {"prediction_length": 8, "context_length": 32,
                 "num_time_features": 2, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                 "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}, _series_and_time),
)  # fmt: skip


def main() -> int:
    """Take the architectures all the way; the exit status is 1 where one is late, bare or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="xnnpack")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="pt2e")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds for one model")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    chosen = [a for a in ARCHITECTURES if _is_chosen(a.model, given.only)]
    rows: dict[str, str] = {}
    table = given.backend if given.flow == "pt2e" else f"{given.backend}, {given.flow}"
    with Worker(given.backend, given.flow, given.timeout) as worker:
        for architecture in tqdm(chosen, disable=None, leave=False):
            integers = _INTEGERS.get(given.backend, torch.int64)
            outcome = worker.outcome(evolve(architecture, integers=integers))
            rows[architecture.model] = _row(architecture.model, outcome)
            tqdm.write(rows[architecture.model])
            sys.stdout.flush()
            if given.write:
                write(table, rows)
    print(_summary(rows))
    return int(any(_kind(row) in _FAILURES for row in rows.values()))


_FAILURES: Final = {*Kind} - {Kind.RIGHT, Kind.REFUSED, Kind.INVALID}


def _is_chosen(name: str, parts: list[str]) -> bool:
    return not parts or any(part.lower() in name.lower() for part in parts)


def _row(name: str, outcome: Outcome) -> str:
    detail = outcome.detail.replace("|", "\\|")
    few, others = outcome.undecided[:3], len(outcome.undecided[3:])
    detail += f" no decision: {', '.join(few)}" if few else ""
    detail += f" and {others} others" if others else ""
    detail += f" mended: {'; '.join(outcome.mended)}" if outcome.mended else ""
    cells = (name, outcome.kind, outcome.delegates, outcome.outside, detail.strip())
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def _kind(row: str) -> Kind:
    return Kind(row.split(" | ")[1])


def _summary(rows: dict[str, str]) -> str:
    counts = Counter(map(_kind, rows.values()))
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in Kind if counts[kind])
    return f"{len(rows)} of {len(ARCHITECTURES)} architectures: {kinds}."


def write(table: str, rows: dict[str, str]) -> None:
    """Put rows into the table of a backend and flow; the rows of other architectures stay."""
    start, page = f"<!-- {table} -->\n", PAGE.read_text(encoding="utf-8")
    if start not in page:
        raise SystemExit(f"{PAGE.name} has no place for {table}: add {start!r} and an end.")
    before = page.partition(start)[2].partition("<!-- end -->")[0]
    earlier = {row.split(" ")[1]: row for row in before.splitlines() if " | " in row}
    names = [a.model for a in ARCHITECTURES]
    rows = {name: row for name in names if (row := {**earlier, **rows}.get(name))}
    version = importlib.metadata.version("transformers")
    head = "| architecture | what became of it | delegates | operators outside | |"
    lines = [f"{_summary(rows)} transformers {version}.", "", head, "|---|---|---:|---:|---|"]
    text = "\n".join([*lines, *rows.values(), ""])
    write_pages({PAGE: with_parts(PAGE, {table: text})}, (), "make architectures")


if __name__ == "__main__":
    assert qcore.backends()
    raise SystemExit(main())
