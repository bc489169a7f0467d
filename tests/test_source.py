"""Source quantization: what is selected, what is refused before anything changes, what is kept."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
)
from torchao.quantization import quantize_ as torchao_quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType

import qcore
from qcore import QuantizationScheme, registry
from qcore.errors import (
    AlreadyQuantizedError,
    GroupSizeError,
    SelectionError,
    UnsupportedSchemeError,
)
from qcore.schemes import LayerScheme
from qcore.source import torchao_quantize_ as drop_in
from qcore.source.export import export_quantized


def linear(bits: int, granularity: str, act: int | None = 8, multiple: int = 1, **options: Any):
    return LayerScheme(
        bits,
        act,
        granularity,
        is_dynamic=act is not None,
        layer="linear",
        group_multiple=multiple,
        **options,
    )


def embedding(bits: int, granularity: str = "per_channel") -> LayerScheme:
    return LayerScheme(bits, None, granularity, layer="embedding", group_multiple=8 // bits)


LINEARS = (
    linear(4, "per_group", multiple=16),
    linear(4, "per_channel", multiple=2),
    linear(8, "per_channel"),
    linear(4, "per_group", None),
)
EMBEDDINGS = (embedding(8), embedding(4, "per_group"), embedding(4), embedding(2))


@pytest.fixture
def backend(toy_backend: type) -> Iterator[Callable[..., str]]:
    """Registers toy backends that declare source schemes."""
    names = []

    def register(*schemes: QuantizationScheme) -> str:
        class Sourced(toy_backend):
            @qcore.hookimpl
            def supported_schemes(self) -> Any:
                return (QuantizationScheme(), *(schemes or (*LINEARS, *EMBEDDINGS)))

        name = f"sourced{len(names)}"
        qcore.register_backend(name, Sourced)
        names.append(name)
        return name

    yield register
    for name in names:
        registry.unregister_backend(name)


class Model(nn.Module):
    """An embedding, two blocks of linear layers, a convolution and a head that may be tied."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(48, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)) for _ in range(2)
        )
        self.conv = nn.Conv1d(4, 4, 3)
        self.head = nn.Linear(32, 48, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


TOKENS = torch.arange(6).reshape(1, 6)


def schemes(report: qcore.SourceReport) -> dict[str, str | None]:
    return {layer.name: layer.scheme for layer in report.layers}


class TestSelection:
    def test_a_scheme_alone_is_for_every_linear_layer(self, backend):
        report = qcore.quantize_(Model(), backend(), "8da4w", group_size=16)
        assert schemes(report) == {
            "embed": None,
            "blocks.0.0": "8da4w per-group 16",
            "blocks.0.2": "8da4w per-group 16",
            "blocks.1.0": "8da4w per-group 16",
            "blocks.1.2": "8da4w per-group 16",
            "conv": None,
            "head": "8da4w per-group 16",
        }
        assert "give embeddings a rule" in report["embed"].reason
        assert "Conv1d" in report["conv"].reason

    def test_several_rules_in_one_call_and_the_most_specific_wins(self, backend):
        report = qcore.quantize_(
            Model(),
            backend(),
            "8da4w per-axis",
            rules={
                nn.Embedding: "8w",
                "head": "8da8w",
                "blocks.*": "8da8w",
                "blocks.1": "4w per-group 16",
                "blocks.1.2": None,
            },
        )
        assert schemes(report) == {
            "embed": "8w per-axis",
            "blocks.0.0": "8da8w per-axis",
            "blocks.0.2": "8da8w per-axis",
            "blocks.1.0": "4w per-group 16",
            "blocks.1.2": None,
            "conv": None,
            "head": "8da8w per-axis",
        }
        assert report["blocks.1.2"].reason == "rules['blocks.1.2']=None leaves it"

    def test_a_name_beats_a_type_and_an_inner_type_an_outer(self, backend):
        report = qcore.quantize_(
            Model(),
            backend(),
            rules={nn.Linear: "8da4w per-axis", nn.Sequential: "8da8w", "blocks.0.0": None},
        )
        assert schemes(report)["blocks.0.0"] is None
        assert schemes(report)["blocks.0.2"] == "8da4w per-axis"

    def test_weight_only_rules_for_a_container_take_embeddings_in(self, backend):
        model = nn.ModuleDict({"tables": nn.ModuleDict({"a": nn.Embedding(8, 8)})})
        assert schemes(qcore.quantize_(model, backend(), rules={"tables": "8w"})) == {
            "tables.a": "8w per-axis"
        }

    def test_the_filter_function_gets_module_and_name(self, backend):
        report = qcore.quantize_(
            Model(), backend(), "8da8w", filter_fn=lambda module, name: name == "head"
        )
        assert [layer.name for layer in report.quantized] == ["head"]
        assert report["blocks.0.0"].reason == "the filter function leaves it out"

    def test_raw_torchao_configurations(self, backend):
        model, reference = Model(), Model()
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=PerGroup(16)
        )
        table = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
        qcore.quantize_(model, backend(), config, rules={nn.Embedding: table})
        torchao_quantize_(reference, config)
        torchao_quantize_(reference, table, lambda module, _: isinstance(module, nn.Embedding))
        assert torch.equal(model(TOKENS), reference(TOKENS))

    @pytest.mark.parametrize(
        ("rules", "hint"),
        [
            ({"haed": "8da8w"}, "Did you mean 'head'"),
            ({"blocks.7": None}, "Did you mean 'blocks.1' or 'blocks.0'"),
            ({nn.LSTM: "8da8w"}, "no module type"),
        ],
    )
    def test_a_rule_that_matches_nothing_is_an_error(self, backend, rules, hint):
        with pytest.raises(SelectionError, match=hint):
            qcore.quantize_(Model(), backend(), "8da8w", rules=rules)

    def test_no_rule_at_all(self, backend):
        with pytest.raises(SelectionError, match="neither scheme nor rules"):
            qcore.quantize_(Model(), backend())

    def test_nothing_matched_at_all(self, backend):
        with pytest.raises(SelectionError, match=r"Nothing is quantized.\n  1 x Embedding: "):
            qcore.quantize_(nn.Sequential(nn.Embedding(4, 4)), backend(), "8da8w")


class TestRefusals:
    """Nothing changes where anything is refused."""

    def refuse(self, error: type[Exception], match: str, name: str, model: Any = None, **call: Any):
        model = Model() if model is None else model
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(error, match=match):
            qcore.quantize_(model, name, **call)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())

    def test_a_backend_without_the_scheme(self, backend):
        self.refuse(
            UnsupportedSchemeError,
            r"sourced0 does not execute 8w.*\nIt executes: 8da4w",
            backend(*LINEARS),
            scheme="8w",
        )

    def test_a_granularity_that_the_backend_lacks(self, backend):
        self.refuse(
            UnsupportedSchemeError, "8da8w dynamic per-group", backend(), scheme="8da8w per-group 8"
        )

    def test_a_backend_without_source_quantization(self, toy):
        toy()
        self.refuse(UnsupportedSchemeError, "toy executes no model", "toy", scheme="8da4w")

    def test_an_unknown_name(self, backend):
        self.refuse(UnsupportedSchemeError, "Did you mean '8da4w'", backend(), scheme="8da4")

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (Int8WeightOnlyConfig(), "Expected a scheme"),
            (IntxWeightOnlyConfig(weight_dtype=torch.int3), "does not execute 3w"),
            (
                IntxWeightOnlyConfig(
                    weight_dtype=torch.int4,
                    granularity=PerGroup(16),
                    mapping_type=MappingType.ASYMMETRIC,
                ),
                "asymmetric weights",
            ),
            (
                Int8DynamicActivationIntxWeightConfig(
                    weight_dtype=torch.int4, act_mapping_type=MappingType.SYMMETRIC
                ),
                "symmetric activations",
            ),
        ],
    )
    def test_configurations_that_cannot_be(self, backend, config, reason):
        self.refuse(UnsupportedSchemeError, reason, backend(), scheme=config)

    def test_an_embedding_on_a_backend_that_cannot_run_it(self, backend):
        self.refuse(
            UnsupportedSchemeError,
            "has no quantized embedding: 4w",
            backend(*LINEARS),
            rules={nn.Embedding: "4w"},
        )

    def test_dynamic_activations_of_an_embedding(self, backend):
        self.refuse(
            UnsupportedSchemeError, "no activation to quantize", backend(), rules={"embed": "8da8w"}
        )

    def test_a_convolution_under_a_linear_scheme(self, backend):
        self.refuse(
            UnsupportedSchemeError,
            r"selects conv, which cannot be quantized: it is a Conv1d",
            backend(),
            scheme="8da8w",
            rules={nn.Conv1d: "8da8w"},
        )

    def test_group_sizes_that_do_not_divide_are_listed_per_layer(self, backend):
        self.refuse(
            GroupSizeError,
            r"does not fit 3 layers:\n  blocks.0.0: 32 weights a row, not divisible by 48\n"
            r"  blocks.1.0: .*\n  head: .*\nPass fallback",
            backend(),
            scheme="8da4w",
            group_size=48,
        )

    def test_group_sizes_that_the_backend_does_not_take(self, backend):
        self.refuse(
            GroupSizeError, "takes multiples of 16", backend(), scheme="8da4w", group_size=8
        )

    def test_a_fallback_that_does_not_fit_either(self, backend):
        self.refuse(
            GroupSizeError,
            r"not divisible by 48; 32 weights a row, not divisible by 80\n",
            backend(),
            scheme="8da4w",
            group_size=48,
            fallback=80,
        )

    @pytest.mark.parametrize(
        ("widths", "group", "advice"),
        [
            ((32, 64), 48, "fallback=32"),
            ((32, 48), 128, "fallback=16"),
            ((32, 40), 32, "fallback='axis'"),
            ((40, 41), 32, "rules={'0': '8da4w per-axis', '1': '8da8w per-axis'}"),
            ((64, 41), 32, "rules={'1': '8da8w per-axis'}"),
        ],
    )
    @pytest.mark.parametrize("fallback", [None, (24, 7)])
    def test_what_the_error_advises_is_accepted(self, backend, widths, group, advice, fallback):
        name = backend(*LINEARS[:1], linear(8, "per_channel"), linear(4, "per_channel", multiple=8))
        model = nn.Sequential(*(nn.Linear(width, 8) for width in widths))
        with pytest.raises(GroupSizeError) as caught:
            qcore.quantize_(model, name, "8da4w", group_size=group, fallback=fallback)
        assert str(caught.value).splitlines()[-1].startswith(f"Pass {advice}")
        followed = eval(f"dict({advice})")
        qcore.quantize_(model, name, "8da4w", group_size=group, **followed)

    def test_a_model_that_is_one_layer_is_advised_another_scheme(self, backend):
        name = backend(linear(4, "per_group", multiple=16), linear(8, "per_channel"))
        with pytest.raises(GroupSizeError, match=r"Pass scheme='8da8w per-axis'\."):
            qcore.quantize_(nn.Linear(41, 8), name, "8da4w", group_size=32)
        qcore.quantize_(nn.Linear(41, 8), name, scheme="8da8w per-axis")

    def test_a_layer_that_no_scheme_fits_is_advised_to_stay_in_float(self, backend):
        self.refuse(
            GroupSizeError,
            r"Pass rules={'0': None}; None leaves a layer in float",
            backend(linear(4, "per_group", multiple=16)),
            nn.Sequential(nn.Linear(41, 8)),
            scheme="8da4w",
            group_size=32,
        )

    def test_packed_embeddings_need_whole_bytes(self, backend):
        self.refuse(
            GroupSizeError,
            "takes multiples of 4",
            backend(),
            nn.Sequential(nn.Embedding(4, 6)),
            rules={"0": "2w"},
        )

    @pytest.mark.parametrize("size", [0, -32, 1.5, True, "row"])
    def test_group_sizes_that_are_none(self, backend, size):
        self.refuse(
            UnsupportedSchemeError, "no group size", backend(), scheme="8da4w", group_size=size
        )

    def test_a_model_that_is_quantized_already(self, backend):
        model, name = Model(), backend()
        qcore.quantize_(model, name, "8da8w", filter_fn=lambda module, path: path == "head")
        with pytest.raises(AlreadyQuantizedError, match="head is quantized already"):
            qcore.quantize_(model, name, "8da8w")
        report = qcore.quantize_(model, name, "8da8w", rules={"head": None})
        assert len(report.quantized) == 4

    def test_what_is_no_module(self, backend):
        exported = torch.export.export(Model(), (TOKENS,))
        for model in (exported, exported.module()):
            with pytest.raises(SelectionError, match="before capture"):
                qcore.quantize_(model, backend(), "8da8w")

    def test_layers_with_a_forward_of_their_own_or_a_computed_weight(self, backend):
        class Scaled(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(2 * x)

        normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        model = nn.Sequential(Scaled(8, 8), normed, nn.Linear(8, 8))
        report = qcore.quantize_(model, backend(), "8da8w")
        assert [layer.name for layer in report.quantized] == ["2"]
        assert "forward of its own" in report["0"].reason
        assert "computed" in report["1"].reason

    def test_the_pt2e_flow_points_here(self, backend):
        quantizer = qcore.get_quantizer(backend())
        with pytest.raises(UnsupportedSchemeError, match=r"Call qcore.quantize_\(model"):
            quantizer.set_global("8da4w")


class TestFallback:
    def test_only_the_layers_that_do_not_fit_fall_back(self, backend):
        model = nn.Sequential(nn.Linear(96, 32), nn.Linear(32, 40), nn.Linear(40, 8))
        report = qcore.quantize_(model, backend(), "8da4w", group_size=48, fallback=(32, "axis"))
        assert [layer.scheme for layer in report.layers] == [
            "8da4w per-group 48",
            "8da4w per-group 32",
            "8da4w per-axis",
        ]
        assert "not divisible by 48" in report["1"].reason

    def test_none_at_the_end_leaves_them_in_float_and_says_why(self, backend):
        model = nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 41), nn.Linear(41, 8))
        report = qcore.quantize_(model, backend(LINEARS[0]), "8da4w", fallback=(16, None))
        assert [layer.scheme for layer in report.layers] == [
            "8da4w per-group 16",
            "8da4w per-group 32",
            None,
        ]
        assert report["2"].reason.startswith("fallback, because 41 weights a row")

    def test_none_at_the_end_leaves_a_table_that_no_scale_fits_in_float(self, backend):
        model = nn.Sequential(nn.Embedding(9, 1), nn.Linear(1, 32), nn.Linear(32, 8))
        rules = {nn.Embedding: "8w"}
        with pytest.raises(UnsupportedSchemeError, match="one weight each"):
            qcore.quantize_(copy.deepcopy(model), backend(), "8da4w", rules=rules)
        report = qcore.quantize_(model, backend(), "8da4w", rules=rules, fallback=(16, None))
        assert [layer.scheme for layer in report.layers] == [None, None, "8da4w per-group 32"]
        assert "one weight each" in report["0"].reason

    def test_none_before_the_end_is_no_group_size(self, backend):
        with pytest.raises(UnsupportedSchemeError, match="no group size"):
            qcore.quantize_(Model(), backend(), "8da4w", fallback=(None, 16))


class TestPadding:
    @pytest.mark.parametrize("bias", [True, False])
    def test_outputs_that_the_backend_does_not_take_are_padded_exactly(self, backend, bias):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(32, 2, bias=bias)), torch.randn(3, 32)
        plain = copy.deepcopy(model)
        qcore.quantize_(plain, backend(LINEARS[0]), "8da4w")
        report = qcore.quantize_(
            model, backend(linear(4, "per_group", output_multiple=4)), "8da4w", group_size=32
        )
        assert model[0].weight.shape == (4, 32)
        assert torch.allclose(model(x), plain(x), atol=1e-6)
        assert report["0"].reason == (
            "padded, because 2 output channels, and sourced1 takes multiples of 4"
        )


class TestFloatTypes:
    def test_a_weight_in_double_precision_stays_and_says_why(self, backend):
        model = nn.Sequential(nn.Linear(32, 8), nn.Linear(32, 8).double())
        report = qcore.quantize_(model, backend(), "8da8w")
        assert report["1"].reason == "its weight is torch.float64"

    def test_rows_of_one_weight_stay_and_say_why(self, backend):
        model = nn.Sequential(nn.Linear(32, 1), nn.Linear(1, 8))
        report = qcore.quantize_(model, backend(), "8da8w")
        assert [layer.scheme for layer in report.layers] == ["8da8w per-axis", None]
        assert "one weight each" in report["1"].reason

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_layers_in_half_precision_are_exported_in_single(self, backend, dtype):
        model, x = nn.Sequential(nn.Linear(32, 8)).to(dtype), torch.randn(3, 32, dtype=dtype)
        qcore.quantize_(model, backend(), "8da8w")
        program = export_quantized(model, (x,))
        (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        assert node.meta["val"].dtype == torch.float32
        exported = program.module()(x)
        assert exported.dtype == dtype
        assert torch.allclose(exported.float(), model(x).float(), atol=0.02)

    def test_an_input_of_one_dimension_is_exported_as_a_row(self, backend):
        model, x = nn.Sequential(nn.Linear(32, 8)), torch.randn(32)
        qcore.quantize_(model, backend(), "8da8w")
        program = export_quantized(model, (x,))
        (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        assert node.meta["val"].shape == (1, 8)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


class TestTiedWeights:
    def test_stay_tied_where_their_format_is_the_same(self, backend):
        model = Model(tied=True)
        report = qcore.quantize_(
            model, backend(), "8da4w per-axis", rules={nn.Embedding: "8w", "head": "8da8w"}
        )
        assert model.head.weight.qdata.data_ptr() == model.embed.weight.qdata.data_ptr()
        untied = qcore.quantize_(Model(), backend(), "8da8w", rules={nn.Embedding: "8w"})
        assert report.bytes_after < untied.bytes_after
        assert report["head"].tied_with == "embed"
        assert report["head"].bytes_after == 0
        assert not report.untied

    def test_are_reported_where_it_differs(self, backend):
        report = qcore.quantize_(Model(tied=True), backend(), "8da4w per-axis")
        assert "embed (float) and head (8da4w per-axis) shared one weight" in report.untied[0]

    def test_a_module_with_two_names_is_one_layer(self, backend):
        model = nn.ModuleDict({"a": nn.Linear(8, 8)})
        model["b"] = model["a"]
        report = qcore.quantize_(model, backend(), rules={"b": "8da8w"})
        assert [layer.name for layer in report.layers] == ["a"]
        assert model["b"].weight is model["a"].weight


class TestDropIn:
    CONFIG = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))

    def test_a_filter_selects_layers_of_any_kind_as_in_torchao(self, backend):
        names = ["embed", "blocks.0.0"]
        linears = linear(8, "per_channel", None)
        report = drop_in(
            Model(),
            self.CONFIG,
            lambda module, name: name in names,
            backend=backend(linears, embedding(8)),
        )
        assert [layer.name for layer in report.quantized] == names

    def test_a_filter_that_selects_nothing_is_an_error(self, backend):
        with pytest.raises(SelectionError, match="Nothing is quantized"):
            drop_in(
                Model(),
                self.CONFIG,
                lambda module, name: False,
                backend=backend(linear(8, "per_channel", None)),
            )


class TestReport:
    def test_sizes(self, backend):
        model = nn.Sequential(nn.Linear(64, 32, bias=False))
        report = qcore.quantize_(model, backend(), "8da4w", group_size=32)
        assert report.bytes_before == 64 * 32 * 4
        assert report.bytes_after == 64 * 32 // 2 + 2 * 32 * 4
        assert report.bits_per_weight == 5.0
        assert report.by_scheme == {"8da4w per-group 32": 1}

    def test_prints_and_serializes(self, backend):
        report = qcore.quantize_(Model(), backend(), "8da8w")
        assert "5 of 7 layers quantized" in str(report)
        assert json.loads(report.to_json())["by_scheme"] == {"8da8w per-axis": 5}


class TestWeights:
    @pytest.mark.parametrize("scheme", ["8da4w per-group 16", "8da4w per-axis", "8da8w"])
    def test_large_weights_are_quantized_as_small_ones(self, backend, monkeypatch, scheme):
        whole, sliced, name = nn.Linear(32, 50), nn.Linear(32, 50), backend()
        sliced.load_state_dict(whole.state_dict())
        whole_model, sliced_model = nn.Sequential(whole), nn.Sequential(sliced)
        qcore.quantize_(whole_model, name, scheme)
        monkeypatch.setattr("qcore.source.weights._AT_ONCE", 32 * 7)
        qcore.quantize_(sliced_model, name, scheme)
        assert torch.equal(whole_model[0].weight.qdata, sliced_model[0].weight.qdata)
        assert torch.equal(whole_model[0].weight.scale, sliced_model[0].weight.scale)

    def test_scales_have_the_precision_that_the_backend_keeps(self, backend):
        model = nn.Sequential(nn.Linear(32, 8))
        weight = model[0].weight.detach().clone()
        name = backend(linear(4, "per_group", scale_dtype=torch.bfloat16))
        qcore.quantize_(model, name, "8da4w")
        quantized = model[0].weight
        assert isinstance(quantized, IntxUnpackedToInt8Tensor)
        assert torch.equal(quantized.scale, quantized.scale.bfloat16().float())
        assert quantized.scale.dtype == torch.float32
        # A quarter percent of a scale's own precision on top of half a step.
        assert ((weight - quantized.dequantize()).abs() <= 0.52 * quantized.scale).all()

    @pytest.mark.slow
    def test_memory_peaks_below_the_float_model_and_the_result(self):
        """At most 1.2 times the float model, plus the quantized one."""
        script = """
            import json, resource, torch, qcore
            from qcore.schemes import LayerScheme
            from torch import nn

            class Backend:
                api_version = 2
                @qcore.hookimpl
                def supported_schemes(self):
                    linear = LayerScheme(4, 8, "per_group", True, layer="linear")
                    table = LayerScheme(8, None, "per_channel", layer="embedding")
                    return [linear, table]
                @qcore.hookimpl
                def annotate(self): ...
                @qcore.hookimpl
                def lower(self): ...

            torch.set_num_threads(1)
            qcore.register_backend("b", Backend)
            rules = {nn.Embedding: "8w"}
            small = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64))
            qcore.quantize_(small, "b", "8da4w", rules=rules)
            def peak():
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            empty = peak()
            layers = [nn.Linear(2048, 2048) for _ in range(8)]
            model = nn.Sequential(nn.Embedding(16384, 2048), *layers)
            report = qcore.quantize_(model, "b", "8da4w", rules=rules)
            stored = sum(layer.weights for layer in report.layers)
            print(json.dumps([empty, peak(), report.bytes_before, stored]))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            check=True,
        )
        empty, peak, before, result = json.loads(done.stdout)
        assert peak - empty <= 1.2 * before + result
