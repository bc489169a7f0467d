"""What a lowered program promises: saving, running, refusing what does not fit."""

from __future__ import annotations

import os
import stat

import attrs
import pytest
import torch

from qcore.errors import LoweringError, RuntimeExecutionError, RuntimeUnavailableError
from qcore.lowering import LoweredProgram, run_program


def test_running_gives_what_the_float_model_gives(program, net, sample):
    torch.testing.assert_close(program.run(sample), net(sample).detach(), atol=1e-5, rtol=1e-4)


def test_a_channels_last_input_gives_the_same_output(program, sample):
    other = sample.to(memory_format=torch.channels_last)
    torch.testing.assert_close(program.run(other), program.run(sample))


def test_a_view_gives_the_same_output_as_its_copy(program, sample):
    view = torch.cat([sample, sample], 3)[..., :8]
    torch.testing.assert_close(program.run(view), program.run(sample))


def test_every_batch_size_of_the_dynamic_range_runs(program, net):
    samples = [torch.randn(batch, 3, 8, 8) for batch in (1, 5, 8)]
    for given, output in zip(samples, program.run_many([(s,) for s in samples]), strict=True):
        torch.testing.assert_close(output, net(given).detach(), atol=1e-5, rtol=1e-4)


def test_run_many_takes_lone_tensors(program, sample):
    first, second = program.run_many([sample, sample])
    torch.testing.assert_close(first, second)


def test_run_many_of_nothing_gives_nothing(program):
    assert program.run_many([]) == []


def test_nan_inputs_are_allowed(program, sample):
    assert program.run(torch.full_like(sample, torch.nan)).isnan().all()


def test_a_session_keeps_one_process(program, sample):
    with program.session() as run:
        torch.testing.assert_close(run(sample), run(sample))


def test_a_refused_input_leaves_the_session_usable(program, sample):
    with program.session() as run:
        with pytest.raises(RuntimeExecutionError):
            run(sample.double())
        assert run(sample).shape == (2, 5)


def test_a_session_ends_with_its_context(program, sample):
    with program.session() as run:
        pass
    with pytest.raises(RuntimeExecutionError, match="session is closed"):
        run(sample)


def test_benchmark_times_the_runs_asked_for(program, sample):
    latency = program.benchmark(sample, warmup=1, runs=5)
    assert latency.runs == 5
    assert 0 < latency.min_ms <= latency.median_ms <= latency.max_ms


def test_benchmark_refuses_zero_runs(program, sample):
    with pytest.raises(ValueError, match="runs must be at least 1"):
        program.benchmark(sample, runs=0)


def test_nothing_is_printed(program, sample, capfd):
    program.run(sample)
    assert capfd.readouterr() == ("", "")


def test_the_arguments_are_described(program):
    assert str(program.inputs[0]) == "x: float32[1..8, 3, 8, 8]"
    assert program.inputs[0].shape == (None, 3, 8, 8)
    assert program.outputs[0].shape == (None, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x.double(),), r"'x'.*got float64\[2, 3, 8, 8\], expected float32.*\.to\("),
        (lambda x: (x[0],), r"'x'.*3 dimensions, expected .* with 4.*batch dimension"),
        (lambda x: (x[..., :7],), r"'x'.*dimension 3 is 7"),
        (lambda x: (x.repeat(5, 1, 1, 1),), r"'x'.*1\.\.8.*dimension 0 is 10.*dynamic_shapes"),
        (lambda x: (x, x), r"2 program inputs were given, the model takes 1: x: float32"),
        (lambda x: (), r"0 program inputs were given"),
        (lambda x: (x.numpy(),), r"'x'.*got numpy\.ndarray.*torch\.as_tensor"),
    ],
    ids=["dtype", "rank", "size", "batch", "too many", "none", "type"],
)
def test_an_input_that_does_not_fit_is_refused_by_name(program, sample, change, message):
    with pytest.raises(RuntimeExecutionError, match=message):
        program.run(*change(sample))


def test_a_program_without_a_runner_says_so(program, sample):
    with pytest.raises(RuntimeUnavailableError, match=r"No runtime .* 'xnnpack'.*on the device"):
        attrs.evolve(program, runner=None).run(sample)


def test_a_saved_program_loads_and_runs_the_same(program, sample, tmp_path):
    path = program.save(tmp_path / "model.pte")
    loaded = LoweredProgram.load(path, backend="xnnpack", runner=program.runner)
    torch.testing.assert_close(loaded.run(sample), program.run(sample))


def test_a_program_that_save_did_not_write_says_that_its_report_is_not_known(program, tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(program.buffer)
    loaded = LoweredProgram.load(path)
    assert "read from a file" in str(loaded.report)
    assert not loaded.report.is_fully_delegated


def test_saving_replaces_the_old_file_whole(program, tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")
    program.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pte"]
    assert path.read_bytes().startswith(program.buffer)


def test_a_saved_file_has_the_usual_permissions(program, tmp_path):
    (tmp_path / "other").touch()
    mode = program.save(tmp_path / "model.pte").stat().st_mode
    assert stat.S_IMODE(mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_saving_into_a_missing_folder_is_refused(program, tmp_path):
    with pytest.raises(LoweringError, match=r"missing does not exist. Create it"):
        program.save(tmp_path / "missing" / "model.pte")


def test_saving_over_a_folder_is_refused(program, tmp_path):
    with pytest.raises(LoweringError, match="it is a folder"):
        program.save(tmp_path)


def test_a_failed_save_leaves_the_old_file(program, tmp_path, monkeypatch):
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LoweringError, match="No space left on device"):
        program.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pte"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("keep", [10, 100, 0.5, -1], ids=str)
def test_a_truncated_program_is_refused(program, sample, keep):
    size = int(len(program.buffer) * keep) if isinstance(keep, float) else keep
    with pytest.raises(RuntimeExecutionError, match=r"is truncated: it has .* bytes"):
        run_program(program.buffer[:size], [sample])


def test_a_truncated_file_is_refused_with_its_name(program, tmp_path):
    path = tmp_path / "short.pte"
    path.write_bytes(program.buffer[:-1])
    with pytest.raises(RuntimeExecutionError, match=r"short\.pte is truncated"):
        LoweredProgram.load(path)


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 this is a zip, not a program"], ids=["0", "zip"]
)
def test_a_file_that_is_no_program_is_refused(data, tmp_path):
    path = tmp_path / "other.pte"
    path.write_bytes(data)
    with pytest.raises(RuntimeExecutionError, match=r"other\.pte .*not an ExecuTorch program"):
        run_program(path, [])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RuntimeExecutionError, match=r"none\.pte: No such file"):
        LoweredProgram.load(tmp_path / "none.pte")


def test_run_program_takes_a_path(program, sample, tmp_path):
    (output,) = run_program(program.save(tmp_path / "model.pte"), [sample])
    torch.testing.assert_close(output, program.run(sample))
