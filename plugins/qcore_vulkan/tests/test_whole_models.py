"""What surrounds quantized layers in real models: masks, positions, copies, sizes that vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import qcore
from qcore.errors import LoweringError

X = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
VOCABULARY = 32


class Around(nn.Module):
    """A linear layer in the middle of something else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(32, 32)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.layer, x)


def lowered(model: nn.Module, inputs: torch.Tensor, **options: Any) -> Any:
    qcore.quantize_(model.eval(), "vulkan", "4w", group_size=32)
    return qcore.get_quantizer("vulkan").lower(model, (inputs,), **options)


def two_copies(layer: nn.Module, x: torch.Tensor) -> Any:
    y = layer(x)
    return y.cumsum(0), y.clone().cumsum(1)


def test_a_comparison_with_infinity_is_delegated_and_exact():
    model = Around(lambda layer, x: layer(torch.where(x == -torch.inf, 0.0, x)))
    masked = X.clone()
    masked[0, 0, :3] = torch.tensor([-torch.inf, torch.finfo(torch.float32).min, 0])
    program = lowered(model, masked)
    assert program.report.delegated_ops["aten.lt.Scalar"] == 1
    assert program.verify(masked).ok
    assert torch.isfinite(model(masked)).all()


def test_a_layer_whose_input_is_in_another_order_is_in_four_bits():
    """Torch multiplies batch by batch there, and ExecuTorch fuses no product of batches."""

    def attended(layer: nn.Module, x: torch.Tensor) -> Any:
        return layer(torch.relu(x).mT)

    x = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(0))
    verified = lowered(Around(attended), x).verify(x)
    assert verified.ok
    assert verified.operators["et_vk.linear_q4gsw.default"] == 1


def test_an_integer_and_a_float_of_the_same_value_are_two_values_of_the_graph():
    """In Python 0 == 0.0: ExecuTorch would keep the first for both."""
    model = Around(lambda layer, x: torch.clamp(layer(x), 0.0, 5.0).unsqueeze(0)[:, 0])
    assert lowered(model, X).verify(X).ok


def test_a_convolution_that_is_clamped_from_one_side_is_verified():
    def rectified(layer: nn.Module, x: torch.Tensor) -> Any:
        return torch.relu(torch.conv2d(layer(x).unsqueeze(0), torch.ones(1, 1, 3, 3)))

    verified = lowered(Around(rectified), X).verify(X)
    assert verified.ok
    assert verified.operators["et_vk.conv_with_clamp.default"] == 1


def test_what_no_tensor_goes_into_stays_outside_and_says_why():
    program = lowered(Around(lambda layer, x: layer(x) + torch.arange(32.0).unsqueeze(0)), X)
    reasons = {node.operator: node.reason for node in program.report.undelegated}
    assert "it reads no tensor" in reasons["aten.arange.start_step"]
    assert program.report.delegated_ops["aten.add.Tensor"] == 1
    assert program.verify(X).ok


def test_a_number_that_is_read_from_a_tensor_stays_outside_and_says_why():
    class Counted(Around):
        def forward(self, x, count):
            return self.layer(x) * count[0].item()

    model = Counted(lambda: None).eval()
    inputs = X, torch.tensor([3])
    qcore.quantize_(model, "vulkan", "4w", group_size=32)
    program = qcore.get_quantizer("vulkan").lower(model, inputs)
    reasons = {node.operator: node.reason for node in program.report.undelegated}
    assert "it computes a size" in reasons["aten._local_scalar_dense.default"]
    assert program.verify(*inputs).ok


def test_an_infinite_argument_stays_outside_and_says_why():
    program = lowered(Around(lambda layer, x: layer(x).clamp(0.0, torch.inf).cumsum(0)), X)
    reasons = {node.operator: node.reason for node in program.report.undelegated}
    assert "cannot serialize infinity" in reasons["aten.clamp.default"]
    assert program.verify(X).ok


def test_a_cast_inside_a_graph_is_computed_with_the_type_it_declares():
    program = lowered(Around(lambda layer, x: layer(x) * (x > 0).to(torch.float32).neg()), X)
    found = program.verify(X)
    assert found.operators["dim_order_ops._to_dim_order_copy.default"] == 1
    assert found.ok


def test_a_layer_that_no_output_depends_on_is_not_missed():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.unused(x)
            return self.used(x)

    found = lowered(Unused(), X).verify(X)
    assert found.ok
    assert found.expected_weights == 1


def test_a_value_and_its_copy_leave_a_delegate_as_one():
    assert lowered(Around(two_copies), X).verify(X).ok


def test_a_graph_that_returns_too_little_is_an_error_or_left_to_portable_kernels(monkeypatch):
    monkeypatch.setattr("qcore_vulkan.lowering.edge_passes", lambda force_fp16: [])
    with pytest.raises(LoweringError, match=r"with 1 outputs, of which the program reads 2"):
        lowered(Around(two_copies), X, check=False)
    program = lowered(Around(two_copies), X)
    assert program.report.mended
    assert program.verify(X).sqnr_db > 100  # Where the layer itself is left, so are its weights.


def test_the_report_says_that_nothing_here_executes_the_program():
    checked = lowered(Around(two_copies), X).report.checked
    assert checked.startswith("not executed: ExecuTorch's Python package has no Vulkan runtime")
    assert "program.verify(*inputs)" in checked


def test_rounded_activations_explain_what_a_program_differs_by_and_nothing_else():
    model = Around(two_copies).eval()
    qcore.quantize_(model, "vulkan", "8da4w", group_size=32)
    found = qcore.get_quantizer("vulkan").lower(model, (X,)).verify(X)
    assert found.ok
    assert not attrs.evolve(found, difference="output 0: 3 dB").ok


class Logits(nn.Module):
    """A two-layer Llama; one with tied weights and fused attention is on the docs' page."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


@pytest.mark.slow
def test_a_llama_of_any_length_is_lowered_and_verified():
    model = Logits().eval()
    report = qcore.quantize_(model, "vulkan", "8da4w", group_size=32)
    assert len(report.quantized) == 15
    length = torch.export.Dim("length", min=2, max=16)
    tokens = torch.arange(12).reshape(1, 12) % VOCABULARY
    program = qcore.get_quantizer("vulkan").lower(model, (tokens,), dynamic_shapes=({1: length},))
    assert program.report.delegated_ops["aten.mm.default"] == 15
    for size in (3, 12, 16):
        found = program.verify(torch.randint(0, VOCABULARY, (1, size)))
        assert found.ok, found
        assert found.operators["et_vk.linear_dq8ca_q4gsw.default"] == 15
