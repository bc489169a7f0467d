"""Models that quantize_ treated, on the real runtime."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import (
    Int8DynActInt4WeightQuantizer,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
)
from torchao.quantization import quantize_ as torchao_quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from transformers import LlamaConfig, LlamaForCausalLM

import qcore
from qcore.errors import GroupSizeError, LoweringError, UnsupportedSchemeError
from qcore.schemes import LayerScheme
from qcore_xnnpack import quantize_
from qcore_xnnpack.support import SCHEMES


def sqnr(reference: torch.Tensor, output: torch.Tensor) -> float:
    noise = (reference.detach() - output).pow(2).sum().detach()
    return float(10 * torch.log10(reference.detach().pow(2).sum() / noise.clamp(min=1e-30)))


class Mixed(nn.Module):
    """Every source scheme that the backend declares, in one model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(50, 64) for _ in range(6))
        self.grouped = nn.Linear(64, 96)
        self.per_row = nn.Linear(96, 40)
        self.eight_bits = nn.Linear(40, 24, bias=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tables[0](tokens)
        for table in self.tables[1:]:
            x = x + table(tokens)
        return x, self.eight_bits(self.per_row(torch.relu(self.grouped(x))))


RULES = {
    "tables.0": "8w per-axis",
    "tables.1": "8w per-group 16",
    "tables.2": "4w per-axis",
    "tables.3": "4w per-group 32",
    "tables.4": "2w per-axis",
    "tables.5": "2w per-group 16",
    "per_row": "8da4w per-axis",
    "eight_bits": "8da8w per-axis",
}


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, qcore.SourceReport, qcore.LoweredProgram]:
    model = Mixed().eval()
    report = qcore.quantize_(model, "xnnpack", "8da4w", group_size=32, rules=RULES)
    length = torch.export.Dim("length", min=1, max=16)
    program = qcore.get_quantizer("xnnpack").lower(
        model, (torch.zeros(1, 4, dtype=torch.int64),), dynamic_shapes=({1: length},)
    )
    return model, report, program


def test_the_model_has_every_declared_scheme(mixed):
    _, report, _ = mixed
    declared = {(s.name, s.granularity, s.layer) for s in SCHEMES if isinstance(s, LayerScheme)}
    used = {
        (
            str(layer.scheme).split(" ")[0],
            "per_channel" if str(layer.scheme).endswith("axis") else "per_group",
            "embedding" if layer.kind == "Embedding" else "linear",
        )
        for layer in report.quantized
    }
    assert used == declared


def test_linears_are_delegated_and_embeddings_on_quantized_kernels(mixed):
    _, _, program = mixed
    assert program.report.delegated_ops["aten.linear.default"] == 3
    assert program.report.undelegated_ops == {
        "quantized_decomposed.embedding_byte.default": 2,
        "quantized_decomposed.embedding_4bit.default": 2,
        "quantized_decomposed.embedding_2bit.default": 2,
    }
    assert not program.report.stray
    assert all("quantized embeddings" in node.reason for node in program.report.undelegated)


@pytest.mark.parametrize("length", [1, 7, 16])
def test_the_program_computes_what_the_quantized_model_does(mixed, length):
    model, _, program = mixed
    tokens = torch.randint(0, 50, (1, length), generator=torch.Generator().manual_seed(length))
    (table, head), (ran_table, ran_head) = model(tokens), program.run(tokens)
    assert sqnr(table, ran_table) > 100
    assert sqnr(head, ran_head) > 40


def test_padding_and_tables_that_are_read_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 32, padding_idx=0)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.table(tokens) + self.table(tokens.flip(1))

    model, tokens = Twice().eval(), torch.arange(8).reshape(1, 8)
    qcore.quantize_(model, "xnnpack", rules={"table": "8w"})
    program = qcore.get_quantizer("xnnpack").lower(model, (tokens,))
    assert program.report.undelegated_ops["quantized_decomposed.embedding_byte.default"] == 2
    assert sqnr(model(tokens), program.run(tokens)) > 100


def test_the_program_is_as_small_as_the_report_says(mixed):
    _, report, _ = mixed
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    report = qcore.quantize_(model, "xnnpack", "8da4w", group_size=64)
    program = qcore.get_quantizer("xnnpack").lower(model, (torch.randn(1, 512),))
    assert len(program.buffer) < 1.1 * report.bytes_after


def test_lowering_leaves_the_model_as_it_was(mixed):
    model, _, _ = mixed
    assert type(model.grouped) is nn.Linear
    assert type(model.grouped.weight).__name__ == "IntxUnpackedToInt8Tensor"


def test_torchaos_own_quantize_lowers_too():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(2, 64)
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    )
    torchao_quantize_(model, config)
    program = qcore.get_quantizer("xnnpack").lower(model, (x,))
    assert program.report.is_fully_delegated
    assert sqnr(model(x), program.run(x)) > 30


def test_the_calls_of_executorchs_page_run_with_the_import_changed():
    """The block on language models of ExecuTorch's docs/source/backends/xnnpack page."""
    torch.manual_seed(0)
    eager_model = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 96), nn.Linear(96, 32)).eval()
    embedding_config = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(eager_model, embedding_config, lambda m, fqn: isinstance(m, torch.nn.Embedding))
    linear_config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    )
    quantize_(eager_model, linear_config)
    tokens = torch.arange(12).reshape(1, 12)
    program = qcore.get_quantizer("xnnpack").lower(eager_model, (tokens,))
    assert program.report.delegated_ops["aten.linear.default"] == 2
    assert program.report.undelegated_ops == {"quantized_decomposed.embedding_byte.default": 1}
    assert sqnr(eager_model(tokens), program.run(tokens)) > 40


def test_the_older_torchao_quantizer_lowers_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval()
    model = Int8DynActInt4WeightQuantizer(precision=torch.float32, groupsize=32).quantize(model)
    x = torch.randn(3, 64)
    program = qcore.get_quantizer("xnnpack").lower(model, (x,))
    assert program.report.is_fully_delegated
    assert sqnr(model(x), program.run(x)) > 40


def test_a_weight_only_linear_layer_is_refused_before_lowering():
    model = nn.Sequential(nn.Linear(64, 32))
    with pytest.raises(UnsupportedSchemeError, match="does not execute 4w weight-only per-group"):
        qcore.quantize_(model, "xnnpack", "4w", group_size=32)
    torchao_quantize_(
        model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    )
    with pytest.raises(UnsupportedSchemeError, match=r"layers of this model:\n  0: 4w"):
        qcore.get_quantizer("xnnpack").lower(model, (torch.randn(1, 64),))


@pytest.mark.parametrize(
    ("width", "group", "advice"),
    [
        (64, 16, {"fallback": 32}),
        (40, "axis", {"rules": {"0": "8da8w per-axis"}}),
        (96, 64, {"fallback": 32}),
    ],
)
def test_group_sizes_that_xnnpack_does_not_take(width: int, group: Any, advice: dict[str, Any]):
    model = nn.Sequential(nn.Linear(width, 8))
    ((argument, value),) = advice.items()
    with pytest.raises(GroupSizeError, match=re.escape(f"Pass {argument}={value}")):
        qcore.quantize_(model, "xnnpack", "8da4w", group_size=group)
    qcore.quantize_(model, "xnnpack", "8da4w", group_size=group, **advice)


def test_a_float_module_is_no_quantized_model():
    with pytest.raises(LoweringError, match="Cannot lower a"):
        qcore.get_quantizer("xnnpack").lower(nn.Linear(4, 4), (torch.randn(1, 4),))


def test_whoever_lowers_the_report_is_told_to_pass_the_model():
    model = nn.Sequential(nn.Linear(32, 4))
    report = qcore.quantize_(model, "xnnpack", "8da8w")
    with pytest.raises(LoweringError, match=r"the model that qcore\.quantize_ was given"):
        qcore.get_quantizer("xnnpack").lower(report, (torch.randn(1, 32),))


def test_a_batch_norm_of_a_sequential_is_lowered_at_once():
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.BatchNorm1d(32)).eval()
    qcore.quantize_(model, "xnnpack", "8da4w", group_size=32)
    program = qcore.get_quantizer("xnnpack").lower(model, (x,))
    assert program.report.mended == ()
    assert sqnr(model(x), program.run(x)) >= 40


class Logits(nn.Module):
    """A two-layer Llama with random weights; the one with tied weights is on the docs' page."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


@pytest.mark.slow
def test_an_untied_llama_of_any_length_runs_as_the_quantized_model_does():
    model = Logits().eval()
    report = qcore.quantize_(model, "xnnpack", "8da4w", group_size=32, rules={nn.Embedding: "8w"})
    assert report.by_scheme == {"8da4w per-group 32": 15, "8w per-axis": 1}
    length = torch.export.Dim("length", min=2, max=32)
    program = qcore.get_quantizer("xnnpack").lower(
        model, (torch.zeros(1, 12, dtype=torch.int64),), dynamic_shapes=({1: length},)
    )
    assert program.report.delegated_ops["aten.linear.default"] == 15 + 5  # Norms.
    assert program.report.undelegated_ops["quantized_decomposed.embedding_byte.default"] == 1
    for size in (2, 12, 32):
        tokens = torch.randint(0, 128, (1, size), generator=torch.Generator().manual_seed(size))
        assert sqnr(model(tokens), program.run(tokens)) >= 40


class ReadsItsTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(64, 32), nn.Linear(32, 32)

    def forward(self, tokens):
        return self.linear(self.table(tokens)) @ self.table.weight.t()


def test_a_quantized_table_that_a_model_reads_itself_is_read_as_its_values():
    model = ReadsItsTable().eval()
    qcore.quantize_(model, "xnnpack", "8da4w", group_size=32, rules={nn.Embedding: "8w"})
    tokens = torch.arange(5).reshape(1, 5)
    program = qcore.get_quantizer("xnnpack").lower(model, (tokens,))
    expected = model.linear(model.table(tokens)) @ model.table.weight.dequantize().t()
    assert sqnr(expected, program.run(tokens)) >= 40
    assert not program.report.mended
