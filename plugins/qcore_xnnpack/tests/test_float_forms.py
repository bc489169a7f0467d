"""What stays in float is written as operators that the delegate executes, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcore
from qcore.graph import is_compute_node, operator_name
from qcore.lowering import export_for_lowering
from qcore_xnnpack.float_forms import in_delegable_forms

Model = Callable[..., torch.Tensor]
attention = F.scaled_dot_product_attention
X = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
KEYS = X[:, ::2]
# A row that may look at nothing among rows that may.
MASK = torch.tensor([[1, 0, 1, 1, 0, 1], [0] * 6, *[[1] * 6] * 4]).bool()
NORM = nn.LayerNorm(8)
nn.init.normal_(NORM.weight)
nn.init.normal_(NORM.bias)

CASES: dict[str, tuple[Model, tuple[torch.Tensor, ...]]] = {
    "layer norm": (NORM.forward, (X,)),
    "layer norm without weights": (lambda x: F.layer_norm(x, (8,), eps=1e-3), (X,)),
    "mean of the last dimension": (lambda x: x.mean(-1, keepdim=True), (X,)),
    "sum of the last dimension": (lambda x: x.sum(-1), (X,)),
    "softmax of an image": (lambda x: x.softmax(-1), (X,)),
    "softmax over channels": (lambda x: x.softmax(1), (X,)),
    "attention": (lambda x: attention(x, x, x.exp()), (X,)),
    "attention with a scale": (lambda x: attention(x, x, x, scale=0.3), (X,)),
    "attention to what was before": (lambda x: attention(x, x, x, is_causal=True), (X,)),
    "attention with shared keys": (
        lambda x, k: attention(x, k, k, is_causal=True, enable_gqa=True),
        (X, KEYS),
    ),
    "attention with a constant mask": (lambda x: attention(x, x, x, attn_mask=MASK), (X,)),
    "attention with a mask": (lambda x, m: attention(x, x, x, attn_mask=m), (X, MASK)),
    "attention with a mask for each sample": (
        lambda x, m: attention(x, x, x, attn_mask=m),
        (X, torch.stack([MASK, ~MASK])[:, None]),
    ),
    "attention with numbers as a mask": (
        lambda x, m: attention(x, x, x, attn_mask=m),
        (X, torch.where(MASK, 0.5, torch.finfo(torch.float32).min)),
    ),
    "products": (lambda x: x @ x.transpose(-1, -2), (X,)),
    "a repeated dimension": (lambda x: x[:, :1].expand(2, 3, 6, 8) + 0.0, (X,)),
    "a pool of rows": (lambda x: F.max_pool1d(x.flatten(1, 2), 2), (X,)),
    "a selected row": (lambda x: x[:, -1] * 2.0, (X,)),
    "powers": (lambda x: x.pow(3.0) + x.abs().pow(0.5), (X,)),
    "PReLU of rows": (lambda x: F.prelu(x.flatten(1), torch.tensor([0.3])), (X,)),
    "PReLU of sequences": (lambda x: F.prelu(x[:, 0].transpose(1, 2), NORM.weight), (X,)),
    "values of no input": (lambda x: x + torch.arange(8).float().sin(), (X,)),
}

TAKEN = {
    "abs",
    "add",
    "bmm",
    "cat",
    "exp",
    "linear",
    "max_pool2d",
    "mul",
    "neg",
    "permute",
    "reshape",
    "rsqrt",
    "slice",
}
TAKEN |= {"relu", "softmax", "sqrt", "sub", "transpose", "unsqueeze", "view"}
# Of a mask that is an input.
OUTSIDE = {"any", "clamp", "to"}


class Called(nn.Module):
    def __init__(self, function: Model) -> None:
        super().__init__()
        self.norm, self.function, self.mask = NORM, function, nn.Buffer(MASK)

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


@pytest.mark.parametrize("case", CASES)
def test_it_is_computed_by_what_the_delegate_takes(case: str) -> None:
    function, inputs = CASES[case]
    program = torch.export.export(Called(function).eval(), inputs)
    expected = program.module()(*inputs)
    written = in_delegable_forms(export_for_lowering(program, inputs))
    called = {operator_name(n).split(".")[1] for n in written.graph.nodes if is_compute_node(n)}
    assert called - TAKEN <= (OUTSIDE if "mask" in case and len(inputs) > 1 else set())
    torch.testing.assert_close(written.module()(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_is_prepared_once_for_all_layers() -> None:
    def twice(x: torch.Tensor, mask: torch.Tensor) -> Any:
        return attention(attention(x, x, x, attn_mask=mask), x, x, attn_mask=mask)

    program = export_for_lowering(torch.export.export(Called(twice), (X, MASK)), (X, MASK))
    names = [operator_name(node) for node in in_delegable_forms(program).graph.nodes]
    assert sum(name.startswith("aten.any") for name in names) == 1


def test_weights_that_are_quantized_stay_quantized() -> None:
    scale, zero = torch.full((8,), 0.1), torch.zeros(8, dtype=torch.int64)
    integers = torch.ones(8, 8, dtype=torch.int8)

    def restored(x: torch.Tensor) -> torch.Tensor:
        operators = torch.ops.quantized_decomposed
        args = (integers, scale, zero, 0, -127, 127, torch.int8)
        return F.linear(x, operators.dequantize_per_channel(*args))

    program = export_for_lowering(torch.export.export(Called(restored), (X,)), (X,))
    assert in_delegable_forms(program) is program


def _of_varying_length(function: Model) -> Any:
    x, length = torch.randn(1, 6, 32), torch.export.Dim("length", min=2, max=16)
    exported = torch.export.export(Called(function), (x,), dynamic_shapes=(({1: length},),))
    return qcore.get_quantizer("xnnpack").lower(exported, (x,))


def _rotated(x: torch.Tensor) -> torch.Tensor:
    heads = x.view(1, x.shape[1], 4, 8)
    return torch.cat([-heads[..., 4:], heads[..., :4]], -1)


def test_rotary_embeddings_of_a_varying_length_are_one_delegate() -> None:
    program = _of_varying_length(_rotated)
    assert program.report.delegated_ops["aten.slice_copy.Tensor"] == 2
    assert program.report.delegates == 1
    for size in (2, 6, 16):
        x = torch.randn(1, size, 32)
        assert torch.equal(program.run(x), _rotated(x))


def test_a_step_through_a_tensor_of_varying_length_is_left_to_a_kernel() -> None:
    program = _of_varying_length(lambda x: x[:, :, ::2].exp())
    assert "aten.slice_copy.Tensor" not in program.report.delegated_ops
    x = torch.randn(1, 9, 32)
    assert torch.allclose(program.run(x), x[:, :, ::2].exp())


def test_a_slice_that_begins_at_a_value_is_left_to_a_kernel() -> None:
    class Window(nn.Module):
        def forward(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
            first = start.item()
            torch._check(first >= 0)
            torch._check(first <= 28)
            return x.exp().narrow(-1, first, 4)

    x, start, length = torch.randn(5, 32), torch.tensor(3), torch.export.Dim("length", max=16)
    exported = torch.export.export(
        Window(), (x, start), dynamic_shapes=({0: length}, {}), strict=False
    )
    program = qcore.get_quantizer("xnnpack").lower(exported, (x, start))
    assert program.report.undelegated_ops["aten.slice_copy.Tensor"] == 1
    assert torch.allclose(program.run(x, start), x[:, 3:7].exp())


def test_channels_are_sliced_from_images_of_a_varying_number() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 3).eval()
    sliced = Called(lambda x: model(x)[:, 1:4] + 1)
    x, number = torch.randn(2, 3, 8, 8), torch.export.Dim("number", min=1, max=4)
    exported = torch.export.export(sliced, (x,), dynamic_shapes=(({0: number},),))
    program = qcore.get_quantizer("xnnpack").lower(exported, (x,))
    assert program.report.delegated_ops["aten.slice_copy.Tensor"] == 1
    for size in (1, 4):
        x = torch.randn(size, 3, 8, 8)
        assert torch.allclose(program.run(x), sliced(x), atol=1e-5)
