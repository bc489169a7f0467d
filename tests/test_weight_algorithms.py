"""How the weights of ``quantize_`` are chosen: by rounding, squared error, or the inputs."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torchao.quantization import IntxUnpackedToInt8Tensor

import qcore
from qcore import QuantizationScheme, registry
from qcore.algorithms import Gptq, SquaredError, WeightAlgorithm, WeightGrid, gptq
from qcore.algorithms.mse import best_scales
from qcore.schemes import LayerScheme
from qcore.source.weights import quantized_weight

GRID = WeightGrid(-8, 7, 32)


def dequantized(chosen: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    values, scales = chosen
    return values.float() * scales.repeat_interleave(values.shape[1] // scales.shape[1], 1)


def rounded(weight: torch.Tensor, grid: WeightGrid = GRID) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, grid.group))
    scale = grid.stored(groups.abs().amax(-1, keepdim=True) / 7.5)
    return (grid.integers(groups, scale) * scale).flatten(1)


def correlated(rows: int, columns: int) -> torch.Tensor:
    """Inputs as layers have them: few directions carry most of what there is."""
    torch.manual_seed(1)
    return torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns) + 0.1 * torch.randn(
        rows, columns
    )


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [32, 128])
def test_no_group_is_further_from_its_weights_by_squared_error_than_rounded(group, scale_dtype):
    torch.manual_seed(0)
    weight, grid = torch.randn(64, 128).pow(3), WeightGrid(-8, 7, group, scale_dtype)
    chosen = dequantized(SquaredError().choose(weight, grid, None))
    errors = [
        (w - weight).square().unflatten(1, (-1, group)).sum(-1)
        for w in (chosen, rounded(weight, grid))
    ]
    assert (errors[0] <= 1.0001 * errors[1]).all()
    assert errors[0].sum() < 0.95 * errors[1].sum()


def test_scales_are_in_the_type_that_the_backend_keeps():
    grid = WeightGrid(-8, 7, 32, torch.bfloat16)
    scales = best_scales(torch.randn(4, 64), grid)
    assert torch.equal(scales, scales.bfloat16().float())


def test_a_group_of_zeros_stays_zero():
    weight = torch.randn(4, 64)
    weight[:, :32] = 0
    for algorithm in (SquaredError(), Gptq()):
        values, scales = algorithm.choose(weight, GRID, torch.eye(64))
        assert not values[:, :32].any()
        assert (scales > 0).all()


def output_error(weight: torch.Tensor, exact: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (weight - exact).T).square().mean())


@pytest.mark.parametrize("reorder", [False, True])
def test_gptq_moves_the_outputs_less_than_rounding_and_squared_error_do(reorder):
    torch.manual_seed(0)
    weight, inputs = torch.randn(48, 256), correlated(512, 256)
    moment = inputs.T @ inputs
    chosen = dequantized(Gptq(reorder=reorder).choose(weight, GRID, moment))
    squared = dequantized(SquaredError().choose(weight, GRID, None))
    error = output_error(chosen, weight, inputs)
    assert error < 0.5 * output_error(rounded(weight), weight, inputs)
    assert error < 0.5 * output_error(squared, weight, inputs)


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("algorithm", [SquaredError(), Gptq(), Gptq(reorder=False)])
def test_nothing_is_made_on_another_device_than_the_weights(algorithm, group):
    torch.manual_seed(0)
    weight, moment, grid = torch.randn(8, 128), torch.eye(128), WeightGrid(-8, 7, group)
    values, scales = algorithm.choose(weight, grid, moment)
    with torch.device("meta"):  # Where tensors are made that nobody says a device for.
        again = algorithm.choose(weight, grid, moment)
        made = quantized_weight(*again, 4)
    assert torch.equal(values, again[0])
    assert torch.equal(scales, again[1])
    assert {made.qdata.device, made.scale.device, made.zero_point.device} == {weight.device}


@pytest.mark.parametrize("group", [32, 128])
def test_gptq_on_inputs_that_have_nothing_to_do_with_each_other_rounds_to_nearest(
    monkeypatch, group
):
    torch.manual_seed(0)
    weight, grid = torch.randn(8, 128), WeightGrid(-8, 7, group)
    values, scales = Gptq(rounds=0).choose(weight, grid, torch.eye(128))
    if group == 32:  # Small groups try fewer scales.
        monkeypatch.setattr("qcore.algorithms.mse._FACTORS", gptq._FACTORS)
    nearest = SquaredError().choose(weight, grid, None)
    assert torch.equal(values, nearest[0])
    assert torch.equal(scales, nearest[1])


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [4, 32, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounds_of_gptq_move_no_output_further_away(bits, group, scale_dtype):
    torch.manual_seed(0)
    weight, inputs = torch.randn(48, 256), correlated(2048, 256)
    grid = WeightGrid(-(1 << bits - 1), (1 << bits - 1) - 1, group, scale_dtype)
    moment = inputs.T @ inputs
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(256)
    errors = []
    for rounds in range(3):
        algorithm = Gptq(damping=0.01, rounds=rounds)
        off = dequantized(algorithm.choose(weight, grid, moment)) - weight
        errors.append(((off @ damped) * off).sum(1))
    assert (errors[1] <= 1.0001 * errors[0]).all()
    assert (errors[2] <= 1.0001 * errors[1]).all()
    assert errors[2].sum() < errors[0].sum()


def test_scales_that_rounds_of_gptq_move_are_in_the_type_that_the_backend_keeps():
    torch.manual_seed(0)
    inputs = correlated(512, 64)
    grid = WeightGrid(-8, 7, 32, torch.bfloat16)
    _, scales = Gptq().choose(torch.randn(8, 64), grid, inputs.T @ inputs)
    assert torch.equal(scales, scales.bfloat16().float())


def test_gptq_takes_columns_that_no_sample_reaches():
    torch.manual_seed(0)
    weight, inputs = torch.randn(16, 64), correlated(256, 64)
    inputs[:, 5:9] = 0
    chosen = dequantized(Gptq().choose(weight, GRID, inputs.T @ inputs))
    assert output_error(chosen, weight, inputs) < output_error(rounded(weight), weight, inputs)
    nearest = dequantized(SquaredError().choose(weight, GRID, None))
    assert (chosen[:, 5:9] - weight[:, 5:9]).abs().max() < 2 * (nearest - weight).abs().max()


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_gptq_takes_fewer_samples_than_columns(samples):
    weight, inputs = torch.randn(16, 64), correlated(256, 64)[:samples]
    values, scales = Gptq(damping=0.0).choose(weight, GRID, inputs.T @ inputs)
    assert values.min() >= -8
    assert values.max() <= 7
    assert scales.isfinite().all()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, shift=0.0):
        return (x + self.out(torch.tanh(self.a(x)) * self.b(x)) + shift,)


class Chain(nn.Module):
    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(64, 50, bias=False)
        self.skips = skips

    def forward(self, tokens):
        start = x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, shift=0.5)[0]
            x = x + start if self.skips else x
        return self.head(x)


def quantized(algorithm, skips=False, backend="xnnpack", scheme="8da4w per-group 32"):
    torch.manual_seed(0)
    model = Chain(skips).eval()
    samples = torch.randint(0, 50, (8, 1, 24))
    data = list(samples[:6]) if algorithm == "gptq" else None
    with torch.no_grad():
        exact = [model(sample) for sample in samples]
        report = qcore.quantize_(model, backend, scheme, algorithm=algorithm, calibration_data=data)
        errors = [(model(s) - e).square().mean() for s, e in zip(samples, exact, strict=True)]
    return float(sum(errors[6:])), report, model


@pytest.mark.parametrize("skips", [False, True])
def test_a_model_quantized_by_gptq_is_closer_to_float_on_other_samples(skips):
    error, report, _ = quantized("gptq", skips)
    assert error < 0.7 * quantized("round", skips)[0]
    assert report.by_scheme == {"8da4w per-group 32": 10}


@pytest.mark.parametrize("algorithm", ["mse", "gptq", "hqq"])
def test_every_algorithm_keeps_the_format_that_rounding_has(algorithm):
    _, report, model = quantized(algorithm)
    _, plain, other = quantized("round")
    assert report.bytes_after == plain.bytes_after
    weight, same = model.blocks[1].a.weight, other.blocks[1].a.weight
    assert weight.qdata.dtype == same.qdata.dtype
    assert weight.scale.shape == same.scale.shape
    assert weight.block_size == same.block_size
    assert not torch.equal(weight.qdata, same.qdata)


THIRD_PARTY = (
    LayerScheme(4, None, "per_group", layer="linear", scale_dtype=torch.float16),
    LayerScheme(4, 8, "per_group", is_dynamic=True, layer="linear", group_multiple=16),
    LayerScheme(8, None, "per_channel", layer="linear", scale_dtype=torch.bfloat16),
    LayerScheme(8, 8, "per_channel", is_dynamic=True, layer="linear"),
)


@pytest.fixture
def third_party(toy_backend):
    class Sourced(toy_backend):
        @qcore.hookimpl
        def supported_schemes(self):
            return (QuantizationScheme(), *THIRD_PARTY)

    qcore.register_backend("third-party", Sourced)
    yield "third-party"
    registry.unregister_backend("third-party")


@pytest.mark.parametrize(
    ("scheme", "scale_dtype"),
    [
        ("4w per-group 16", torch.float16),
        ("8da4w per-group 16", torch.float32),
        ("8w", torch.bfloat16),
        ("8da8w", torch.float32),
    ],
)
def test_every_algorithm_fits_the_schemes_of_a_third_party(third_party, scheme, scale_dtype):
    _, plain, rounded_model = quantized("round", backend=third_party, scheme=scheme)
    errors = {}
    for algorithm in ("mse", "gptq", "hqq"):
        errors[algorithm], report, model = quantized(algorithm, backend=third_party, scheme=scheme)
        assert report.by_scheme == plain.by_scheme
        weight, other = model.blocks[1].a.weight, rounded_model.blocks[1].a.weight
        assert torch.equal(weight.scale, weight.scale.to(scale_dtype).float())
        assert weight.activation_quantization == other.activation_quantization
        assert not torch.equal(weight.qdata, other.qdata)
    assert errors["gptq"] < errors["mse"]


def test_an_embedding_and_a_tied_head_share_what_squared_error_chose():
    model = Chain().eval()
    model.head.weight = model.embed.weight
    report = qcore.quantize_(
        model,
        "xnnpack",
        rules={nn.Embedding: "8w", "head": "8da8w"},
        algorithm="gptq",
        calibration_data=[torch.arange(20)[None]],
    )
    assert report["head"].tied_with == "embed"
    assert model.head.weight.qdata.data_ptr() == model.embed.weight.qdata.data_ptr()
    assert report["head"].algorithm == report["embed"].algorithm == "mse"


def test_samples_look_up_rows_of_a_quantized_embedding_and_never_make_all_of_it_float(monkeypatch):
    made: list[torch.Tensor] = []
    theirs = IntxUnpackedToInt8Tensor.dequantize

    def dequantize(self, *args, **kwargs):
        made.append(self.qdata)
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(IntxUnpackedToInt8Tensor, "dequantize", dequantize)
    model, tokens = Chain().eval(), torch.tensor([[7, 3, 3, 49]])
    how = {"rules": {nn.Embedding: "8w"}, "algorithm": "gptq", "calibration_data": [tokens]}
    qcore.quantize_(model, "xnnpack", "8da4w", **how)
    looked_up = model.embed.weight.qdata[[3, 7, 49]]
    assert any(torch.equal(rows, looked_up) for rows in made)
    assert not any(rows.shape == (50, 64) for rows in made)


def test_a_block_is_dequantized_once_for_all_samples(monkeypatch):
    made: list[int] = []
    theirs = IntxUnpackedToInt8Tensor.dequantize

    def dequantize(self, *args, **kwargs):
        made.append(id(self))
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(IntxUnpackedToInt8Tensor, "dequantize", dequantize)
    model = Chain().eval()
    samples = [torch.randint(0, 50, (1, 8)) for _ in range(3)]
    how = {"rules": {"head": None}, "algorithm": "gptq", "calibration_data": samples}
    qcore.quantize_(model, "xnnpack", "8da4w", **how)
    weights = [
        layer.weight
        for block in model.modules()
        if isinstance(block, Block)
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert weights
    assert {made.count(id(weight)) for weight in weights} == {1}
    assert not any("dequantize" in vars(weight) for weight in weights)


def test_the_report_says_what_chose_the_weights_of_a_layer_that_no_sample_reaches():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    model.rare = nn.Identity()
    model.rare.layer = nn.Linear(64, 32)
    report = qcore.quantize_(
        model,
        "xnnpack",
        "8da4w",
        algorithm="gptq",
        calibration_data=[torch.randn(4, 64)],
    )
    assert [layer.algorithm for layer in report.layers] == ["gptq", "gptq", "mse"]
    said = next(line for line in str(report).splitlines() if "rare.layer" in line)
    assert "is 8da4w per-group 32: 'mse' chose its weights" in said


def test_an_algorithm_of_ones_own_sees_grids_and_inputs():
    seen = []

    class Own(WeightAlgorithm):
        name = "own"
        uses_samples = True

        def choose(self, weight, grid, moment):
            seen.append((grid.group, moment.shape))
            return SquaredError().choose(weight, grid, moment)

    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32))
    data = [torch.randn(4, 64)]
    qcore.quantize_(model, "xnnpack", "8da4w", algorithm=Own(), calibration_data=data)
    assert seen == [(32, (64, 64)), (32, (32, 32))]


def test_samples_on_another_device_than_the_model_are_refused_before_a_weight_changes():
    model = Chain()
    with pytest.raises(qcore.errors.CalibrationError, match=r"sample 1 is on meta.*x.to\('cpu'\)"):
        qcore.quantize_(
            model,
            "xnnpack",
            "8da4w",
            algorithm="gptq",
            calibration_data=[torch.randn(1, 64), torch.randn(1, 64, device="meta")],
        )
    assert not any(isinstance(p, IntxUnpackedToInt8Tensor) for p in model.parameters())


@pytest.mark.parametrize(
    ("algorithm", "data", "words"),
    [
        ("gptq", None, "there are no samples"),
        ("gptq", [], "has no samples"),
        ("mse", [torch.zeros(1, 64)], "uses no samples"),
        ("gtpq", None, "Did you mean 'gptq'"),
    ],
)
def test_an_algorithm_without_what_it_needs_is_refused_before_a_weight_changes(
    algorithm, data, words
):
    model = nn.Sequential(nn.Linear(64, 32))
    with pytest.raises(qcore.QcoreError, match=words):
        qcore.quantize_(model, "xnnpack", "8da4w", algorithm=algorithm, calibration_data=data)
    assert type(model[0].weight) is nn.Parameter


@pytest.mark.parametrize(("turns", "heads"), [(1, 2), (2, 6)])
def test_samples_go_no_further_than_the_last_block_where_blocks_are_a_chain(turns, heads):
    class Turns(Chain):
        def forward(self, tokens):
            x = self.embed(tokens)
            for block in [*self.blocks] * turns:
                x = block(x)[0]
            return self.head(x)

    torch.manual_seed(0)
    model, calls = Turns().eval(), []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    data = list(torch.randint(0, 50, (4, 1, 24)))
    rules = {"head": None}
    qcore.quantize_(model, "xnnpack", "8da4w", rules=rules, algorithm="gptq", calibration_data=data)
    # One sample to see what a norm feeds and one to see the chain; else each to observe.
    assert len(calls) == heads


@pytest.mark.parametrize(("writes", "expected"), [(False, [1, 1]), (True, [1, 24, 1, 24])])
def test_a_head_computes_one_row_to_see_what_feeds_what_unless_its_rows_are_written(
    writes, expected
):
    class Speaks(Chain):
        def forward(self, tokens):
            logits = super().forward(tokens)
            rows.append(logits.untyped_storage().nbytes() // logits[0, 0].nbytes)
            return logits.mul_(2.0) if writes else logits

    torch.manual_seed(0)
    model, rows = Speaks().eval(), []
    model.head = nn.Linear(64, 1024, bias=False)
    data = list(torch.randint(0, 50, (4, 1, 24)))
    rules = {"head": None}
    qcore.quantize_(model, "xnnpack", "8da4w", rules=rules, algorithm="gptq", calibration_data=data)
    assert rows == expected


def test_choosing_leaves_torch_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for algorithm in (SquaredError(), Gptq()):
            algorithm.choose(torch.randn(8, 64), GRID, torch.eye(64))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is Linux's to tell")
def test_gptq_holds_the_statistics_of_one_block_beside_the_float_model():
    script = """
        import json, torch, qcore
        from pathlib import Path
        from torch import nn

        SIZE, BLOCKS = 1024, 12

        def memory(key):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(x for x in lines if x.startswith(key)).split()[1])

        def network(size, blocks):
            chain = [
                nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size))
                for _ in range(blocks)
            ]
            return nn.Sequential(*chain)

        def by_gptq(model, size):
            samples = [torch.randn(32, size) for _ in range(4)]
            qcore.quantize_(model, "xnnpack", "8da4w", algorithm="gptq", calibration_data=samples)

        torch.set_num_threads(1)
        by_gptq(network(64, 2), 64)
        model = network(SIZE, BLOCKS)
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak before.
        before = memory("VmRSS")
        by_gptq(model, SIZE)
        print(json.dumps([memory("VmHWM") - before, 4 * SIZE * SIZE]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    grown, square = json.loads(done.stdout)
    # A block is two layers and two sums; choosing one weight takes seven squares more. All 24 sums
    # of the model together made it 32.
    assert grown <= 14 * square
