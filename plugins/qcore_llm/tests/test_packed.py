"""Checkpoints that are quantized already: their integers and scales are the program's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import qcore
import qcore_llm
from qcore.cli.app import app
from qcore.errors import AlreadyQuantizedError, UnsupportedSchemeError
from qcore.report import LoweringReport
from qcore.source import is_quantized
from qcore_llm import LanguageModelError

#: Integers (outputs, inputs) from -8 and scales (outputs, groups) by the layer's name.
Weights: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor]]
Tensors: TypeAlias = dict[str, torch.Tensor]

LAYER = "model.layers.1.mlp.down_proj"


def words(integers: torch.Tensor, order: Sequence[int] = range(8), bits: int = 4) -> torch.Tensor:
    """Pack integers from 0 along the rows: those of a word in an order, the first lowest."""
    places = enumerate(order)
    packed = sum(integers[:, place :: 32 // bits].long() << bits * i for i, place in places)
    assert isinstance(packed, torch.Tensor)
    # The highest bit is the sign.
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def gptq(integers: torch.Tensor, scales: torch.Tensor, zero: int = 7) -> Tensors:
    inputs, groups = integers.shape[1], scales.shape[1]
    return {
        "qweight": words(integers + 8).T,
        "qzeros": words(torch.full((groups, len(integers)), zero)),
        "scales": scales.T.half(),
        "g_idx": (torch.arange(inputs) // (inputs // groups)).int(),
    }


def gptq_v2(integers: torch.Tensor, scales: torch.Tensor) -> Tensors:
    return gptq(integers, scales, zero=8)


def awq(integers: torch.Tensor, scales: torch.Tensor) -> Tensors:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(integers.T + 8, order),
        "qzeros": words(torch.full((scales.shape[1], len(integers)), 8), order),
        "scales": scales.T.half(),
    }


def compressed(integers: torch.Tensor, scales: torch.Tensor) -> Tensors:
    return {
        "weight_packed": words(integers + 8),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(integers.shape),
    }


LAYOUTS: dict[str, tuple[Callable[..., Tensors], dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}),
    "gptq_v2": (gptq_v2, {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}),
    "compressed": (compressed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
}


def drawn(model: Any, group: int, scale_dtype: torch.dtype) -> Weights:
    random = torch.Generator().manual_seed(0)
    found: Weights = {}
    for name, module in model.named_modules():
        if ".layers." in name and isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            integers = torch.randint(-8, 8, (rows, columns), generator=random)
            scales = torch.rand(rows, columns // group, generator=random) * 0.02 + 0.01
            found[name] = integers, scales.to(scale_dtype).float()
    return found


@pytest.fixture
def write(float_llama: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Weights]:
    """Write a checkpoint into ``tmp_path`` and return what was drawn for it."""

    def written(
        layout: str,
        change: Callable[[Tensors, dict[str, Any]], object] = lambda *_: None,
        group: int = 32,
        scale_dtype: torch.dtype = torch.bfloat16,
    ) -> Weights:
        pack, config = LAYOUTS[layout]
        weights, config = drawn(float_llama, group, scale_dtype), dict(config)
        tensors: Tensors = {
            name: value
            for name, value in float_llama.state_dict().items()
            if name.removesuffix(".weight") not in weights and name != "lm_head.weight"
        }
        for name, (integers, scales) in weights.items():
            packed = pack(integers, scales)
            tensors |= {f"{name}.{end}": value.contiguous() for end, value in packed.items()}
        change(tensors, config)
        whole = float_llama.config.to_dict() | {"quantization_config": config}
        (tmp_path / "config.json").write_text(json.dumps(whole), encoding="utf-8")
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(tmp_path)
        return weights

    return written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_integers_and_scales_of_a_checkpoint_are_the_models(
    write: Callable[..., Weights], layout: str, tmp_path: Path
) -> None:
    weights = write(layout)
    model, _ = qcore_llm.load_model(tmp_path)
    report = qcore_llm.quantize(model)
    assert report["model.lm_head"].algorithm == "mse"
    for name, (integers, scales) in weights.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight.qdata.long(), integers)
        assert torch.equal(weight.scale, scales)
        assert report[f"model.{name}"].scheme == "8da4w per-group 32"
        assert report[f"model.{name}"].reason == "quantized already, and kept"


def test_zero_points_that_move_no_integer_out_of_four_bits_are_taken_up(
    write: Callable[..., Weights], tmp_path: Path
) -> None:
    def without_highest(tensors: Tensors, config: dict[str, Any]) -> None:
        weight, zeros = torch.randint(0, 15, (64, 96)), torch.full((64, 3), 7)
        tensors[f"{LAYER}.weight_packed"] = words(weight)
        tensors[f"{LAYER}.weight_zero_point"] = words(zeros.T).T.contiguous()
        tensors["expected"] = weight - 7

    tensors: Tensors = {}
    write("compressed", lambda *both: (without_highest(*both), tensors.update(both[0])))
    model, _ = qcore_llm.load_model(tmp_path)
    assert torch.equal(model.get_submodule(LAYER).weight.qdata.long(), tensors["expected"])


def test_eight_bits_with_a_scale_a_row_are_the_models(
    write: Callable[..., Weights], tmp_path: Path
) -> None:
    integers = torch.randint(-128, 128, (64, 96))

    def wider(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors[f"{LAYER}.weight_packed"] = words(integers + 128, range(4), bits=8)
        tensors[f"{LAYER}.weight_scale"] = torch.full((64, 1), 0.5)

    write("compressed", wider)
    model, _ = qcore_llm.load_model(tmp_path)
    with pytest.raises(AlreadyQuantizedError, match=rf"{LAYER} is .* 8w per-axis"):
        qcore_llm.quantize(model)
    report = qcore.quantize_(model, "xnnpack", "8da4w", rules={LAYER: "8da8w"})
    assert torch.equal(model.get_submodule(LAYER).weight.qdata.long(), integers)
    assert report[LAYER].scheme == "8da8w per-axis"


def test_a_head_that_is_quantized_already_is_kept(
    write: Callable[..., Weights], tmp_path: Path
) -> None:
    head = torch.randint(-8, 8, (320, 64)), torch.full((320, 2), 0.5)

    def packed_head(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors |= {f"lm_head.{end}": value.contiguous() for end, value in gptq(*head).items()}

    write("gptq", packed_head)
    model, _ = qcore_llm.load_model(tmp_path)
    qcore_llm.quantize(model)
    assert torch.equal(model.lm_head.weight.qdata.long(), head[0])
    assert is_quantized(model.model.embed_tokens)


def shuffled(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{LAYER}.g_idx"] = tensors[f"{LAYER}.g_idx"].roll(1)


def of_three_bits(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{LAYER}.qweight"] = torch.zeros(9, 64, dtype=torch.int32)


def with_zero_points(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{LAYER}.qzeros"] = words(torch.full((3, 64), 3))


def without(end: str) -> Callable[[Tensors, dict[str, Any]], object]:
    return lambda tensors, config: tensors.pop(f"{LAYER}.{end}")


def configured(**changes: Any) -> Callable[[Tensors, dict[str, Any]], object]:
    return lambda tensors, config: config.update(changes)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("awq", with_zero_points, rf"{LAYER}\.qweight: integers from -3 to 12, .*zero points"),
        ("gptq", shuffled, rf"{LAYER}\.qweight: .* do not lie together"),
        ("gptq", of_three_bits, rf"{LAYER}\.qweight: 3 bits"),
        ("gptq", configured(checkpoint_format="marlin"), "gptq in the format 'marlin'"),
        ("awq", configured(version="gemv"), "awq in the format 'gemv'"),
        ("compressed", configured(format="int-quantized"), "in the format 'int-quantized'"),
        ("gptq", without("scales"), f"{LAYER} has no tensor scales"),
        ("compressed", without("weight_packed"), rf"do not match: {LAYER}\.weight"),
    ],
)
def test_what_has_no_form_without_loss_is_refused_by_tensor_and_reason(
    write: Callable[..., Weights], layout: str, change: Any, message: str, tmp_path: Path
) -> None:
    write(layout, change)
    with pytest.raises(LanguageModelError, match=message):
        qcore_llm.load_model(tmp_path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"group": 16}, r"model\.layers\.0.* per-group 16, .*takes multiples of 32"),
        ({"scale_dtype": torch.float16}, r"model\.layers\.0.* bfloat16.*round_scales"),
    ],
)
def test_what_the_backend_keeps_otherwise_is_refused_by_layer_and_reason(
    write: Callable[..., Weights], how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write("gptq", **how)
    model, _ = qcore_llm.load_model(tmp_path)
    with pytest.raises(UnsupportedSchemeError, match=message):
        qcore_llm.quantize(model)


def test_the_command_takes_such_a_folder_and_rounds_scales_where_told(
    write: Callable[..., Weights], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("gptq", scale_dtype=torch.float16)
    text = tmp_path / "text.txt"
    text.write_text("A text to calibrate on, of some length. " * 200, encoding="utf-8")
    command = ["llm", "quantize", str(tmp_path), "-o", str(tmp_path / "m.pte"), "--text", str(text)]
    assert "--round-scales" in CliRunner().invoke(app, command).stderr
    # Lowering takes long, and is the same as for other models.
    report = LoweringReport("xnnpack")
    lowered = SimpleNamespace(save=Path.touch, buffer=b"", max_context=32, report=report)
    monkeypatch.setattr(qcore_llm, "lower", lambda *_, **__: lowered)
    result = CliRunner().invoke(app, [*command, "--round-scales", "--json"])
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["report"]["layers"]
    assert sum("scales rounded to bfloat16" in layer["reason"] for layer in layers) == 14
