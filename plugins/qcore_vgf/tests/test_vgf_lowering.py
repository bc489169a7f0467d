"""VGF programs: lowered, saved, executed over Vulkan and on the reference model."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
import torch

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram
from qcore_executorch import import_executorch
from qcore_vgf.lowering import lower_to_vgf
from qcore_vgf.runner import VgfRunner

pytestmark = pytest.mark.slow


def vgf_spec(*args):
    return import_executorch("executorch.backends.arm.vgf").VgfCompileSpec(*args)


@pytest.fixture(scope="module")
def lowered(convert, cnn, picture):
    model, exported = convert(vgf_spec(), cnn, [(picture,)])
    return model, lower_to_vgf(exported, vgf_spec())


def test_a_program_is_one_delegate_and_runs_over_vulkan_as_the_converted_model(lowered, picture):
    model, program = lowered
    assert program.report.is_fully_delegated
    assert program.report.delegates == 1
    torch.testing.assert_close(program.run(picture), model(picture), rtol=0, atol=0)


def test_a_program_is_executed_when_it_is_made(lowered):
    assert lowered[1].report.checked == "executed once and compared with the converted model"


def test_a_program_from_a_file_or_a_pickle_sets_vulkan_up_itself(lowered, picture, tmp_path):
    model, program = lowered
    saved = LoweredProgram.load(program.save(tmp_path / "model.pte"))
    for other in (saved, pickle.loads(pickle.dumps(program))):
        assert other.report == program.report
        torch.testing.assert_close(other.run(picture), model(picture), rtol=0, atol=0)
        with pytest.raises(LoweringError, match="read from a file does not hold its TOSA graphs"):
            other.run(picture, reference=True)


def test_the_reference_model_computes_the_same(lowered, picture):
    model, program = lowered
    other = picture.flip(3).to(memory_format=torch.channels_last)
    results = program.run_many([picture, other], reference=True)
    for result, sample in zip(results, (picture, other), strict=True):
        torch.testing.assert_close(result, model(sample), rtol=0, atol=0)


def test_a_session_runs_many_inputs(lowered, picture):
    model, program = lowered
    with program.session() as run:
        for scale in (0.5, 1.0):
            torch.testing.assert_close(run(picture * scale), model(picture * scale), rtol=0, atol=0)


def test_the_reference_model_can_be_timed(lowered, picture):
    program = lowered[1].on_reference_model()
    latency = program.benchmark(picture, warmup=0, runs=2)
    assert latency.runs == 2
    assert "a device's time is another: this was Arm's TOSA reference model" in str(latency)


def test_the_reference_model_has_as_long_as_the_program(lowered):
    program = attrs.evolve(lowered[1], runner=VgfRunner(timeout_s=7.0))
    assert program.on_reference_model().runner.timeout_s == 7.0


def test_a_session_on_the_reference_model_serves_several_threads(lowered, picture):
    model, program = lowered
    samples = [picture * scale for scale in torch.linspace(0.1, 1, 8)]
    with program.on_reference_model().session() as run, ThreadPoolExecutor(4) as pool:
        for sample, output in zip(samples, pool.map(run, samples), strict=True):
            torch.testing.assert_close(output, model(sample), rtol=0, atol=0)


def test_the_vgf_and_the_tosa_graph_are_saved_alone(lowered, picture, tmp_path):
    import tosa_reference_model

    model, program = lowered
    (vgf,) = program.save_vgf(tmp_path / "model.vgf")
    (tosa,) = program.save_tosa(tmp_path / "model.tosa")
    assert vgf.read_bytes() in program.buffer
    (output,), status = tosa_reference_model.run(tosa.read_bytes(), [picture.numpy()])
    assert status == tosa_reference_model.GraphStatus.TOSA_VALID
    torch.testing.assert_close(torch.from_numpy(output).reshape(1, 10), model(picture))


def test_programs_with_several_delegates_run_and_save_a_file_for_each(
    convert, interrupted, row, tmp_path
):
    model, exported = convert(vgf_spec(), interrupted, [(row,)])
    program = lower_to_vgf(exported, vgf_spec())
    assert [node.operator for node in program.report.undelegated] == ["aten.topk.default"]
    for result in (program.run(row), program.run(row, reference=True)):
        torch.testing.assert_close(result, model(row), rtol=0, atol=0)
    files = program.save_vgf(tmp_path / "model.vgf")
    assert [file.name for file in files] == [
        "model.lowered_module_0.vgf",
        "model.lowered_module_1.vgf",
    ]


def test_a_part_in_float_is_lowered_in_float(convert, cnn, picture):
    model, exported = convert(vgf_spec(), cnn, [(picture,)], in_float="0")
    program = lower_to_vgf(exported, vgf_spec())
    assert program.report.is_fully_delegated
    torch.testing.assert_close(program.run(picture), model(picture), rtol=0, atol=1e-6)


def test_unsigned_inputs_and_outputs_are_computed_right(convert, cnn, picture):
    config = import_executorch("executorch.backends.arm.quantizer")
    io = config.get_uint8_io_quantization_config()
    model, exported = convert(vgf_spec(), cnn, [(picture,)], io=io)
    program = lower_to_vgf(exported, vgf_spec())
    expected = model(picture)
    step = expected.abs().max() / 50
    torch.testing.assert_close(program.run(picture), expected, rtol=0, atol=float(step))


def run_both_ways(program, samples):
    yield from zip(
        program.run_many(samples), program.run_many(samples, reference=True), samples, strict=True
    )


def test_bodies_with_weights_are_delegates_that_own_them(convert_bodies, layers, row):
    samples = [(row,), (-row,)]
    model, exported = convert_bodies(vgf_spec(), layers, samples)
    program = lower_to_vgf(exported, vgf_spec())
    assert not program.report.undelegated
    assert "frozen" not in " ".join(program.partitioned.state_dict)
    for vulkan, reference, sample in run_both_ways(program, samples):
        torch.testing.assert_close(vulkan, model(*sample), rtol=0, atol=0)
        torch.testing.assert_close(reference, model(*sample), rtol=0, atol=0)


def test_two_outputs_of_one_value_are_both_computed():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x), torch.tanh(x), torch.argmax(x, 1)

    x = torch.linspace(-2, 2, 8).reshape(2, 4)
    first, second, positions = lower_to_vgf(torch.export.export(Twice(), (x,)), vgf_spec()).run(x)
    torch.testing.assert_close(first, torch.tanh(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert positions.tolist() == [3, 3]


def test_constants_alone_are_computed_outside_of_the_delegates():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.zeros_like(x).cos() * 2

    program = lower_to_vgf(torch.export.export(Constant(), (torch.ones(4),)), vgf_spec())
    assert program.report.delegates == 0
    assert program.run(torch.ones(4)).tolist() == [2.0] * 4


def test_loops_are_refused_with_what_to_do():
    class Loop(torch.nn.Module):
        def forward(self, x):
            return torch.while_loop(lambda v: v.sum() < 30, lambda v: (v + v,), (x,))[0]

    program = torch.export.export(Loop(), (torch.ones(4),))
    with pytest.raises(LoweringError, match="no loops.*Repeat the body"):
        lower_to_vgf(program, vgf_spec())


def test_lowering_needs_no_activated_environment_and_prints_nothing():
    # A process of its own: whether something prints depends on what is imported already.
    code = """
import qcore, sys, torch
from qcore_executorch import import_executorch
from qcore_vgf.lowering import lower_to_vgf
spec = import_executorch("executorch.backends.arm.vgf").VgfCompileSpec()
program = torch.export.export(torch.nn.Linear(4, 4), (torch.rand(1, 4),))
lower_to_vgf(program, spec)
"""
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    env.pop("MODEL_CONVERTER_PATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_options_are_refused_with_those_there_are():
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.rand(2, 4),))
    with pytest.raises(
        LoweringError,
        match="no option 'thread'. Did you mean 'threads'.* Its options: check, threads, timeout_s",
    ):
        lower_to_vgf(program, vgf_spec(), thread=2)


def test_dynamic_shapes_are_refused():
    batch = {0: torch.export.Dim("batch", min=2, max=8)}
    linear, sample = torch.nn.Linear(4, 4), torch.rand(2, 4)
    dynamic = torch.export.export(linear, (sample,), dynamic_shapes=(batch,))
    with pytest.raises(LoweringError, match="dimension 0 of 'input' is dynamic"):
        lower_to_vgf(dynamic, vgf_spec())
