"""Programs for Ethos-U: compiled by Vela, reported, executed on the reference model."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import attrs
import jsonschema
import pytest
import torch

import qcore
from qcore.errors import LoweringError, RuntimeUnavailableError
from qcore.lowering import LoweredProgram
from qcore.report import REPORTS, schema
from qcore.testing import Rounding
from qcore_ethosu import EthosUQuantizer
from qcore_ethosu.lowering import lower_to_ethosu
from qcore_ethosu.report import EthosUReport
from qcore_executorch import import_executorch
from qcore_tosa.compat import executorch as compat

pytestmark = pytest.mark.slow

TARGETS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


def ethosu_spec(target: str = "ethos-u55-128"):
    return import_executorch("executorch.backends.arm.ethosu").EthosUCompileSpec(target)


@pytest.fixture(scope="module")
def lowered(convert, cnn, picture):
    def lower(target):
        model, exported = convert(ethosu_spec(target), cnn, [(picture,)])
        return model, lower_to_ethosu(exported, ethosu_spec(target))

    return {target: lower(target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_a_program_runs_on_the_reference_model_within_one_step_of_the_converted_model(
    lowered, picture, target
):
    model, program = lowered[target]
    expected = model(picture)
    step = float(expected.abs().max()) / 100
    torch.testing.assert_close(program.run(picture), expected, rtol=0, atol=step)


def test_a_program_from_a_file_or_a_pickle_runs(lowered, picture, tmp_path):
    program = lowered["ethos-u55-128"][1]
    saved = LoweredProgram.load(program.save(tmp_path / "model.pte"))
    for other in (saved, pickle.loads(pickle.dumps(program))):
        assert (other.buffer, other.report) == (program.buffer, program.report)
        assert torch.equal(other.run(picture), program.run(picture))


def test_an_artifact_alone_says_that_it_runs_on_the_device(lowered, picture, tmp_path):
    (tmp_path / "model.pte").write_bytes(lowered["ethos-u55-128"][1].buffer)
    alone = LoweredProgram.load(tmp_path / "model.pte", backend="ethosu")
    with pytest.raises(RuntimeUnavailableError, match=r"not in the artifact alone: load that file"):
        alone.run(picture)


@pytest.mark.parametrize("target", TARGETS)
def test_no_operator_is_left_to_the_cpu(lowered, target):
    report = lowered[target][1].report
    assert report.cpu_operators == 0
    assert report.npu_operators >= 3
    assert not report.undelegated


def test_the_report_has_velas_figures(lowered):
    report = lowered["ethos-u55-128"][1].report
    (figures,) = report.vela
    assert figures.accelerator == "Ethos_U55_128"
    # The convolution, the pooling and the linear layer.
    assert report.macs == 16 * 16 * 8 * 3 * 9 + 16 * 16 * 8 + 8 * 10
    assert report.total_cycles >= report.npu_cycles > 0
    assert report.inferences_per_second == pytest.approx(
        figures.core_clock_hz / report.total_cycles
    )
    # The convolution reads 3 and writes 8 channels of 16x16 bytes; the weights are in flash.
    assert report.sram_bytes >= 16 * 16 * 8
    assert report.flash_bytes >= 3 * 9 * 8
    assert report.to_dict()["vela"][0]["macs"] == report.macs


def test_the_report_says_how_the_program_is_executed(lowered):
    report = lowered["ethos-u55-128"][1].report
    assert "reference model, with integer semantics" in str(report)
    assert report.to_dict()["execution"] == report.execution


def test_the_report_fits_its_schema_and_is_read_back(lowered):
    report = lowered["ethos-u55-128"][1].report
    data = json.loads(report.to_json())
    jsonschema.validate(data, schema(EthosUReport))
    jsonschema.validate(data, schema(*REPORTS))
    assert EthosUReport.from_dict(data) == report


def test_operators_that_the_npu_lacks_are_listed_by_name(convert, interrupted, row):
    _, exported = convert(ethosu_spec(), interrupted, [(row,)])
    with pytest.raises(LoweringError, match=r"cannot execute 1 operators.*\n  .*aten.topk.default"):
        lower_to_ethosu(exported, ethosu_spec())


class Turned(torch.nn.Module):
    def forward(self, x):
        return x.t().t(), torch.relu(x).t().t()


def test_an_output_that_is_turned_there_and_back_is_written(convert, row):
    spec = ethosu_spec("ethos-u85-256")
    model, exported = convert(spec, Turned(), [(row,)])
    program = lower_to_ethosu(exported, spec)
    for given, expected in zip(program.run(row), model(row), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_figures_of_several_delegates_add_up_and_the_rest_runs_on_the_cpu(
    convert, interrupted, row
):
    model, exported = convert(ethosu_spec(), interrupted, [(row,)])
    program = lower_to_ethosu(exported, ethosu_spec(), allow_cpu=True)
    report = program.report
    assert (len(report.vela), report.cpu_operators) == (2, 1)
    assert report.macs == sum(figures.macs for figures in report.vela) == 2 * 8 * 8
    torch.testing.assert_close(program.run(row), model(row), rtol=0, atol=0)


def test_both_paths_of_a_conditional_are_in_one_graph_and_run(convert, branches, row):
    spec = ethosu_spec("ethos-u85-256")
    model, exported = convert(spec, branches, [(row,), (-row,)])
    program = lower_to_ethosu(exported, spec)
    assert program.report.delegates == 1
    for sample in (row, -row):
        torch.testing.assert_close(program.run(sample), model(sample), rtol=0, atol=0)


def test_bodies_with_weights_are_compiled_apart(convert_bodies, layers, row):
    samples = [(row,), (-row,)]
    spec = ethosu_spec("ethos-u85-256")
    model, exported = convert_bodies(spec, layers, samples)
    program = lower_to_ethosu(exported, spec)
    assert program.report.cpu_operators == 0
    assert program.report.delegates > 1
    for (sample,) in samples:
        torch.testing.assert_close(program.run(sample), model(sample), rtol=0, atol=0)


def test_a_loop_is_in_one_graph_on_u85(convert):
    class Loop(torch.nn.Module):
        def forward(self, x):
            def small(value):
                return torch.lt(value.sum(1), torch.full((1,), 30.0)).squeeze()

            return torch.while_loop(small, lambda value: (value + value,), (x,))[0]

    spec = ethosu_spec("ethos-u85-256")
    samples = [(torch.rand(1, 8),)]
    model, exported = convert(spec, Loop(), samples)
    program = lower_to_ethosu(exported, spec)
    assert program.report.delegates == 1
    torch.testing.assert_close(program.run(*samples[0]), model(*samples[0]), rtol=0, atol=0)


def test_activations_of_16_bits_compile_without_the_cpu(convert, cnn, picture):
    arm = import_executorch("executorch.backends.arm.quantizer")
    spec = ethosu_spec("ethos-u85-256")
    config = arm.get_symmetric_a16w8_quantization_config()
    model, exported = convert(spec, cnn, [(picture,)], config=config)
    program = lower_to_ethosu(exported, spec)
    assert program.report.cpu_operators == 0
    torch.testing.assert_close(program.run(picture), model(picture), rtol=0, atol=1e-3)


def test_options_that_vela_refuses_are_named_with_velas_words(convert, cnn, picture):
    spec = import_executorch("executorch.backends.arm.ethosu").EthosUCompileSpec(
        "ethos-u55-128", memory_mode="No_Such_Mode"
    )
    _, exported = convert(spec, cnn, [(picture,)])
    with pytest.raises(
        LoweringError, match=r"(?s)Vela refuses its options.*memory_mode.*No_Such_Mode"
    ):
        lower_to_ethosu(exported, spec)


def test_lowering_prints_nothing(convert, cnn, picture, tmp_path):
    _, exported = convert(ethosu_spec(), cnn, [(picture,)])
    torch.export.save(exported, tmp_path / "model.pt2")
    # A process of its own: whether something prints depends on what is imported already.
    code = """
import sys
from qcore_executorch import import_executorch
from qcore_ethosu.lowering import lower_to_ethosu
from qcore_ethosu.report import EthosUReport
spec = import_executorch("executorch.backends.arm.ethosu").EthosUCompileSpec("ethos-u55-128")
import torch
program = lower_to_ethosu(torch.export.load(sys.argv[1]), spec)
assert program.report.cpu_operators == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt2")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_options_are_refused_with_those_there_are():
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.rand(2, 4),))
    with pytest.raises(
        LoweringError,
        match="no option 'cpu'. Did you mean 'allow_cpu'.* options: allow_cpu, check, timeout_s",
    ):
        lower_to_ethosu(program, ethosu_spec(), cpu=True)


def test_an_operator_that_is_wrong_on_the_npu_is_refused_by_name_and_may_run_on_the_cpu(
    monkeypatch, convert
):
    class Maximum(torch.nn.Module):
        def forward(self, x):
            return torch.maximum(x.tanh(), x * 0.5) + x

    visitor = import_executorch("executorch.backends.arm.operators.op_tosa_maximum").MaximumVisitor
    right = visitor.define_node

    def forgetting(self, node, graph, inputs, output):
        right(self, node, graph, [inputs[0]] * 2, output)

    monkeypatch.setattr(visitor, "define_node", forgetting, raising=False)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model, exported = convert(ethosu_spec(), Maximum(), [(x,)])
    with pytest.raises(
        LoweringError, match=r"computes something else.*\n  maximum.*dB to the.*\n.*allow_cpu=True"
    ):
        lower_to_ethosu(exported, ethosu_spec())
    program = lower_to_ethosu(exported, ethosu_spec(), allow_cpu=True)
    (mended,) = program.report.mended
    assert mended.operator == "aten.maximum.default"
    assert not Rounding.of_model(model, x).difference([program.run(x)])


def test_a_kernel_that_equals_another_constant_compiles(monkeypatch):
    class Equal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.batch, self.group = torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(1, 4)

        def forward(self, x):
            return self.batch(x), self.group(x)

    random = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2, 4, 8, 8, generator=random) for _ in range(2))
    quantizer = EthosUQuantizer(ethosu_spec("ethos-u85-256")).set_global("8a8w")
    model = qcore.quantize(Equal().eval(), quantizer, [x, other]).model
    assert not quantizer.lower(model, (x,)).report.undelegated
    monkeypatch.setattr(compat, "_EQUALS", attrs.evolve(compat._EQUALS, only="<0"))
    with pytest.raises(LoweringError, match="Vela refuses the graph"):
        quantizer.lower(model, (x,), check=False)
