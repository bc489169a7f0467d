"""The Ethos-U quantizer: targets, schemes that really compile, refusals in one error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.errors import (
    CaptureError,
    PartialQuantizationError,
    QcoreError,
    UnsupportedSchemeError,
)
from qcore_ethosu import (
    EthosUCompileSpec,
    EthosUQuantizer,
    get_symmetric_a16w8_quantization_config,
    get_uint8_io_quantization_config,
)
from qcore_vgf import VgfCompileSpec

X = torch.rand(1, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Refused(nn.Module):
    """Operators of which the smaller NPUs lack some and all lack others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.topk(self.layer(x), 4).values
        return torch.where(y > 0, y, torch.fft.rfft(y, 6).abs())


def get(target: str = "ethos-u85-256", **options: Any) -> qcore.Quantizer:
    return qcore.get_quantizer("ethosu", target=target, **options)


def test_both_ways_to_a_quantizer_compile_for_the_same_target() -> None:
    ours = EthosUQuantizer(EthosUCompileSpec("ethos-u55-128"))
    assert ours.backend.target == get("ethos-u55-128").backend.target == "ethos-u55-128"
    flags = get("ethos-u65-256", memory_mode="Shared_Sram").backend.compile_spec.compiler_flags
    assert "--memory-mode=Shared_Sram" in flags


@pytest.mark.parametrize("target", [None, "ethos-u85", "u55"])
def test_an_accelerator_that_does_not_exist_is_refused_with_those_that_do(target: Any) -> None:
    with pytest.raises(QcoreError, match="ethos-u85-256"):
        get(target)


def test_a_compile_spec_of_another_backend_is_refused() -> None:
    with pytest.raises(QcoreError, match="takes ExecuTorch's EthosUCompileSpec, got Vgf"):
        EthosUQuantizer(VgfCompileSpec())


def test_leaving_a_part_in_float_is_refused_when_it_is_set() -> None:
    q = get()
    for leave in (
        lambda: q.set_global(None),
        lambda: q.set_io(None),
        lambda: q.set_module_name("layer", None),
        lambda: q.set_module_type(nn.Linear, None),
    ):
        with pytest.raises(PartialQuantizationError, match="whole models in integers"):
            leave()


@pytest.mark.parametrize("name", ["8w", "4w", "8da8w"])
def test_weight_only_and_dynamic_schemes_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UnsupportedSchemeError, match="16a8w static per-channel"):
        get().set_global(name)


def test_everything_that_would_stay_in_float_is_in_one_error() -> None:
    with pytest.raises(PartialQuantizationError) as caught:
        qcore.quantize(Refused(), get().set_global("8a8w"), [X])
    text = str(caught.value)
    assert "cannot execute 2 nodes" in text
    assert "topk (aten.topk.default): it would stay in float" in text
    assert "fft_rfft (aten.fft_rfft.default): it would stay in float" in text
    assert "where" not in text


def test_smaller_targets_name_what_they_lack_beside_it() -> None:
    with pytest.raises(PartialQuantizationError) as caught:
        qcore.quantize(Refused(), get("ethos-u55-128").set_global("8a8w"), [X])
    text = str(caught.value)
    assert "gt (aten.gt.Tensor): ethos-u55-128 has no comparisons" in text
    assert "where (aten.where.self): ethos-u55-128 has no selecting by a condition" in text
    assert "choose an Ethos-U85" in text


class Products(nn.Module):
    """A product of two activations, as attention has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.T @ x


def test_smaller_targets_have_no_products_of_16_bit_activations() -> None:
    with pytest.raises(PartialQuantizationError, match=r"mm .*16-bit.*with 8a8w"):
        qcore.quantize(Products(), get("ethos-u65-256").set_global("16a8w"), [X])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "scheme"), [("ethos-u65-256", "8a8w"), ("ethos-u85-256", "16a8w")]
)
def test_the_other_products_of_activations_compile(target: str, scheme: str) -> None:
    q = get(target).set_global(scheme)
    result = qcore.quantize(Products(), q, [X])
    assert q.lower(result.model, X).report.cpu_operators == 0


def test_what_no_rule_selects_is_refused_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
    with pytest.raises(PartialQuantizationError, match=r"sigmoid.*no rule selects it"):
        qcore.quantize(model, get().set_module_type(nn.Linear, "8a8w"), [X])


def test_integers_need_no_quantization() -> None:
    class Position(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).argmax(-1) + 1

    result = qcore.quantize(Position(), get().set_global("8a8w"), [X])
    assert result.report["argmax"].is_quantized
    assert result.report["add"].scheme is None


@pytest.mark.parametrize("offset", [None, 1])
def test_positions_are_given_as_int32_by_the_npu_alone(offset: int | None) -> None:
    class Position(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = (x * 2).argmax(-1)
            return found if offset is None else found + offset

    quantizer = get().set_global("8a8w")
    program = quantizer.lower(qcore.quantize(Position(), quantizer, [X]).model, (X,))
    assert program.report.cpu_operators == 0
    found = program.run(X)
    assert found.dtype is torch.int32
    assert torch.equal(found, Position()(X).int())


@pytest.mark.slow
def test_the_smallest_target_executes_16_bit_activations(
    cnn: nn.Module, picture: torch.Tensor
) -> None:
    config = get_symmetric_a16w8_quantization_config(is_per_channel=False)
    q = get("ethos-u55-128").set_global(config)
    result = qcore.quantize(cnn, q, [picture])
    program = q.lower(result.model, picture)
    assert program.report.cpu_operators == 0
    torch.testing.assert_close(program.run(picture), result.model(picture), rtol=0, atol=0.001)


class Residual(nn.Module):
    """A value that a convolution and an addition read, as in most networks for pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.second(x)


@pytest.mark.slow
def test_residual_connections_compile_with_16_bit_activations(picture: torch.Tensor) -> None:
    q = get().set_global("16a8w")
    result = qcore.quantize(Residual(), q, [picture])
    program = q.lower(result.model, picture)
    torch.testing.assert_close(program.run(picture), result.model(picture), rtol=0, atol=0.001)


@pytest.mark.slow
def test_pictures_may_come_in_as_uint8(cnn: nn.Module, picture: torch.Tensor) -> None:
    q = get("ethos-u55-128").set_global("8a8w").set_io(get_uint8_io_quantization_config())
    result = qcore.quantize(cnn, q, [picture])
    program = q.lower(result.model, picture)
    assert program.report.cpu_operators == 0
    step = float(result.model(picture).abs().max()) / 50
    torch.testing.assert_close(program.run(picture), result.model(picture), rtol=0, atol=step)


class Looked(nn.Module):
    """A token's embedding, through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.layer = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(tokens))


def test_inputs_of_64_bits_are_refused_before_calibration() -> None:
    tokens = torch.tensor([[1, 5, 3]])
    q = get().set_global("8a8w")
    with pytest.raises(PartialQuantizationError, match=r"tokens.*torch\.int32.*allow_cpu=True"):
        qcore.quantize(Looked(), q, [tokens])
    qcore.quantize(Looked(), q, [tokens.to(torch.int32)])


class Counted(Looked):
    """Looks up by running sums, which are of 64 bits whatever is summed."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cumsum(tokens.ne(0).int(), 1) + 1)


class Ended(Looked):
    """Takes what was looked up for the largest number, as CLIP does."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)[torch.arange(len(tokens)), tokens.argmax(-1)]


@pytest.mark.parametrize(("model", "operator"), [(Counted(), "cumsum"), (Ended(), "argmax")])
def test_integers_of_64_bits_that_depend_on_inputs_are_refused_by_the_first_of_them(
    model: nn.Module, operator: str
) -> None:
    tokens = torch.randint(0, 2, (1, 4), dtype=torch.int32)
    with pytest.raises(PartialQuantizationError, match="no 64-bit integers") as caught:
        qcore.quantize(model, get().set_global("8a8w"), [tokens])
    assert "cannot execute 1 nodes" in str(caught.value)
    assert operator in str(caught.value)


def test_embeddings_stay_on_the_cpu_where_the_user_says_so() -> None:
    tokens = torch.tensor([[1, 5, 3]])
    q = get(allow_cpu=True).set_global("8a8w").set_module_type(nn.Embedding, None)
    result = qcore.quantize(Looked().eval(), q, [tokens])
    program = q.lower(result.model, (tokens,))
    assert any("embedding" in node.operator for node in program.report.undelegated)
    assert program.report.delegated
    assert torch.equal(program.run(tokens), result.model(tokens))


def test_sizes_that_vary_are_refused_before_calibration() -> None:
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    with pytest.raises(CaptureError, match="dimension 0 of 'input_1' is dynamic"):
        qcore.quantize(
            nn.Linear(8, 8), get().set_global("8a8w"), [X.repeat(2, 1)], dynamic_shapes=shapes
        )
