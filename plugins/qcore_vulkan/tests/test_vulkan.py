"""What Vulkan executes, what it refuses, and that verify would notice a wrong program."""

from __future__ import annotations

import copy
import json

import attrs
import jsonschema
import pytest
import torch
from torch import nn

import qcore
import qcore_vulkan
from qcore.errors import (
    GroupSizeError,
    LoweringError,
    RuntimeExecutionError,
    RuntimeUnavailableError,
    UnsupportedSchemeError,
)
from qcore.report import REPORTS, schema
from qcore_vulkan import VulkanQuantizer, get_symmetric_quantization_config
from qcore_vulkan.graph import decode
from qcore_vulkan.report import VulkanVerification

X = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))


class ThreeLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def by_source(scheme: str) -> qcore_vulkan.lowering.VulkanProgram:
    model = ThreeLinears().eval()
    qcore.quantize_(model, "vulkan", scheme, group_size=32)
    return qcore.get_quantizer("vulkan").lower(model, (X,))


def by_pt2e(weight_bits: int) -> qcore_vulkan.lowering.VulkanProgram:
    config = get_symmetric_quantization_config(weight_bits=weight_bits)
    quantizer = VulkanQuantizer().set_global(config)
    result = qcore.quantize(ThreeLinears().eval(), quantizer, [X])
    return quantizer.lower(result.model, (X,))


@pytest.fixture(scope="module")
def dynamic():
    return by_source("8da4w")


class TestSchemes:
    @pytest.mark.parametrize(
        ("build", "operator", "bits"),
        [
            (lambda: by_source("4w"), "et_vk.linear_q4gsw.default", 4),
            (lambda: by_source("8da4w"), "et_vk.linear_dq8ca_q4gsw.default", 4),
            (lambda: by_pt2e(8), "aten._weight_int8pack_mm.default", 8),
            (lambda: by_pt2e(4), "et_vk.linear_qcs4w.default", 4),
        ],
    )
    def test_every_declared_scheme_becomes_quantized_operators(self, build, operator, bits):
        program = build()
        assert program.report.is_fully_delegated
        found = program.verify(X)
        assert found.ok, found
        assert found.operators[operator] == 3
        assert [(check.bits, check.matches) for check in found.weights] == [(bits, True)] * 3
        assert found.sqnr_db > 100

    def test_pt2e_leaves_the_rest_in_float_and_says_so(self):
        quantizer = VulkanQuantizer().set_global(get_symmetric_quantization_config())
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 4))
        report = qcore.quantize(model, quantizer, [X]).report
        assert [d.operator for d in report.quantized] == ["aten.linear.default"] * 2
        reasons = {d.operator: d.reason for d in report.in_float}
        assert "no quantized aten.tanh" in reasons["aten.tanh.default"]
        assert "takes multiples of 4" in reasons["aten.linear.default"]

    def test_dynamic_activations_by_pt2e_are_refused(self):
        with pytest.raises(UnsupportedSchemeError, match="does not execute 8da8w"):
            VulkanQuantizer().set_global(get_symmetric_quantization_config(is_dynamic=True))

    @pytest.mark.parametrize("bits", [{"weight_bits": 2}, {"act_bits": 16}])
    def test_bits_that_vulkan_lacks(self, bits):
        with pytest.raises(UnsupportedSchemeError, match="Pass weight_bits=8 or 4"):
            get_symmetric_quantization_config(**bits)

    @pytest.mark.parametrize("scheme", ["8w", "8da8w"])
    def test_eight_bits_by_source_are_refused(self, scheme):
        with pytest.raises(UnsupportedSchemeError, match=f"does not execute {scheme}"):
            qcore.quantize_(ThreeLinears(), "vulkan", scheme)

    def test_embeddings_are_refused(self):
        for scheme in ("4w", "8w"):
            with pytest.raises(UnsupportedSchemeError, match="has no quantized embedding"):
                qcore.quantize_(
                    nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 8)),
                    "vulkan",
                    "8da4w",
                    rules={nn.Embedding: scheme},
                )

    def test_outputs_that_fill_no_texels_are_padded(self):
        found, report = verified(nn.Sequential(nn.Linear(64, 2)), X)
        assert report["0"].reason.startswith("padded, because 2 output channels")
        assert found.ok

    def test_groups_that_fill_no_texels_are_refused(self):
        with pytest.raises(GroupSizeError, match="group size 6, and vulkan takes multiples of 4"):
            qcore.quantize_(nn.Sequential(nn.Linear(36, 32)), "vulkan", "4w", group_size=6)


def verified(model: nn.Module, x: torch.Tensor):
    report = qcore.quantize_(model.eval(), "vulkan", "8da4w", group_size=32)
    return qcore.get_quantizer("vulkan").lower(model, (x,)).verify(x), report


class Twice(nn.Module):
    """Calls one layer twice, and returns None among its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        y = self.layer(x)
        return y, None, self.layer(torch.relu(y))


class InputReturned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x)
        return y, self.layer(y)


class PartInDouble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).double()).float()


class ReadsItsWeight(nn.Module):
    """Multiplies by the weight of a layer that it calls as well, as a head by a table."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ self.layer.weight.t()


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Twice(), X),
        (ReadsItsWeight(), X),
        (ReadsItsWeight().half(), X.half()),
        (InputReturned(), X),
        (PartInDouble(), X),
        (nn.Sequential(nn.Linear(64, 32)), X[0, 0]),
        (nn.Sequential(nn.Linear(64, 32)), X.mT.contiguous().mT),
        (nn.Sequential(nn.Linear(64, 32), nn.ReLU()).half(), X.half()),
        (nn.Sequential(nn.Linear(64, 32), nn.ReLU()).bfloat16(), X.bfloat16()),
    ],
    ids=[
        "a layer called twice",
        "a weight read as values",
        "a weight read as values in float16",
        "what a layer reads is returned",
        "a part in double",
        "one dimension",
        "in another order",
        "float16",
        "bfloat16",
    ],
)
def test_ordinary_models_lower_and_are_verified(model, x):
    found, _ = verified(model, x)
    assert found.ok, found


def test_a_model_captured_with_keywords_is_verified_with_them_or_by_position():
    model = Twice().eval()
    qcore.quantize_(model, "vulkan", "4w", group_size=32)
    program = qcore.get_quantizer("vulkan").lower(model, {"x": X})
    assert program.verify(x=X).ok
    assert program.verify(X).ok
    with pytest.raises(RuntimeExecutionError, match="captured with x"):
        program.verify(y=X)


def test_a_sequential_lowers_though_its_layers_have_numbers_for_names():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
    qcore.quantize_(model, "vulkan", "8da4w", group_size=32)
    program = qcore.get_quantizer("vulkan").lower(model, (X,))
    assert program.verify(X).ok
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


@pytest.mark.parametrize("scheme", ["4w", "8da4w"])
@pytest.mark.parametrize("algorithm", ["mse", "gptq", "hqq"])
def test_weights_that_are_chosen_are_nearer_than_rounded_ones_and_in_the_program(scheme, algorithm):
    torch.manual_seed(0)
    mixed = torch.randn(64, 64)
    samples = [torch.randn(16, 64) @ mixed for _ in range(8)]
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).eval()
    errors = {}
    for name in ("round", algorithm):
        own = copy.deepcopy(model)
        data = samples[:-1] if name == "gptq" else None
        qcore.quantize_(own, "vulkan", scheme, group_size=32, algorithm=name, calibration_data=data)
        errors[name] = (own(samples[-1]) - model(samples[-1])).square().mean().item()
    assert errors[algorithm] < errors["round"]
    assert qcore.get_quantizer("vulkan").lower(own, (samples[-1],)).verify(samples[-1]).ok


class TestRun:
    def test_refuses_with_the_reason(self, dynamic):
        with pytest.raises(RuntimeUnavailableError, match="no Vulkan runtime"):
            dynamic.run(X)

    def test_lower_knows_its_options(self):
        with pytest.raises(LoweringError, match="Its options: check, compile_options"):
            qcore.get_quantizer("vulkan").lower(by_model(), (X,), threads=2)


def by_model() -> nn.Module:
    model = ThreeLinears().eval()
    qcore.quantize_(model, "vulkan", "4w")
    return model


class TestVerify:
    def test_prints_and_serializes(self, dynamic):
        found = dynamic.verify(X)
        assert "3 of 3 quantized weights are in the program" in str(found)
        assert "no shader and no driver ran" in str(found)
        assert '"ok": true' in found.to_json()

    def test_fits_its_schema_and_is_read_back(self, dynamic):
        found = dynamic.verify(X)
        data = json.loads(found.to_json())
        jsonschema.validate(data, schema(VulkanVerification))
        jsonschema.validate(data, schema(*REPORTS))
        assert VulkanVerification.from_dict(data) == found

    def test_notices_a_wrong_weight_in_the_program(self, dynamic):
        (graph,) = decode(dynamic.buffer)
        weight = max(
            (c for c in graph.constants.values() if c.dtype == torch.uint8),
            key=lambda tensor: tensor.numel(),
        )
        data = weight.numpy().tobytes()
        wrong = bytes([data[0] ^ 0x77]) + data[1:]
        assert dynamic.buffer.count(data) == 1
        broken = attrs.evolve(dynamic, buffer=dynamic.buffer.replace(data, wrong))
        found = broken.verify(X)
        assert not found.ok
        assert [check.matches for check in found.weights].count(False) == 1
        assert "NOT verified" in str(found)

    def test_needs_the_model_that_was_lowered(self, dynamic, tmp_path):
        path = dynamic.save(tmp_path / "model.pte")
        with pytest.raises(LoweringError, match="read from a file"):
            type(dynamic).load(path, backend="vulkan").verify(X)
