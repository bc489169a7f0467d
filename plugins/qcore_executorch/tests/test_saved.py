"""A saved program takes along what it needs to run: read back, it is the program that it was."""

from __future__ import annotations

import pickle
import subprocess
import sys

import attrs
import pytest
import torch
from torch import nn

import qcore
from qcore.errors import QcoreWarning, RuntimeExecutionError
from qcore.lowering import LoweredProgram, run_program
from qcore_executorch import ExecuTorchRunner

TOKENS = torch.arange(6).reshape(1, 6)
SCALE = torch.tensor([0.5])


class Lookup(nn.Module):
    """Needs a module of kernels; takes a keyword and returns a dictionary."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(16, 32)
        self.layer = nn.Linear(32, 8)

    def forward(self, tokens, *, scale):
        found = self.table(tokens)
        return {"found": found, "given": self.layer(found) * scale}


@pytest.fixture(scope="module")
def lookup():
    model = Lookup().eval()
    qcore.quantize_(model, "xnnpack", scheme="8da8w", rules={"table": "8w per-axis"})
    exported = torch.export.export(model, (TOKENS,), {"scale": SCALE})
    return qcore.get_quantizer("xnnpack").lower(exported, None)


@pytest.fixture
def path(lookup, tmp_path):
    return lookup.save(tmp_path / "lookup.pte")


def same(left, right):
    assert list(left) == list(right) == ["found", "given"]
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0)


def test_it_runs_with_nothing_else_named_and_keeps_the_keys_of_its_output(lookup, path):
    assert "executorch.kernels.quantized" in lookup.runner.modules
    loaded = LoweredProgram.load(path)
    same(loaded.run(TOKENS, scale=SCALE), lookup.run(TOKENS, scale=SCALE))


def test_it_knows_its_backend_its_report_and_its_arguments(lookup, path):
    loaded = LoweredProgram.load(path)
    for name in ("buffer", "backend", "report", "runner", "inputs", "outputs", "suffix", "call"):
        assert getattr(loaded, name) == getattr(lookup, name), name
    assert type(loaded.report) is type(lookup.report)


def test_a_process_that_has_imported_nothing_runs_it(path):
    code = (
        "import sys, torch; from qcore.lowering import LoweredProgram;"
        "p = LoweredProgram.load(sys.argv[1]);"
        "print(sorted(p.run(torch.arange(6).reshape(1, 6), scale=torch.tensor([0.5]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['found', 'given']\n", "")


def test_the_plain_runtime_of_executorch_takes_the_file(program, sample, tmp_path):
    path = program.save(tmp_path / "model.pte")
    assert path.read_bytes() != program.buffer
    code = (
        "import sys, torch; from executorch.runtime import Runtime;"
        "x = torch.load(sys.argv[2]);"
        "(y,) = Runtime.get().load_program(sys.argv[1]).load_method('forward').execute([x]);"
        "torch.save(y, sys.argv[2])"
    )
    other = tmp_path / "value.pt"
    torch.save(sample, other)
    subprocess.run([sys.executable, "-c", code, path, other], capture_output=True, check=True)
    torch.testing.assert_close(torch.load(other), program.run(sample))


def test_the_file_of_equal_programs_is_equal(lookup, path, tmp_path):
    later = attrs.evolve(lookup, report=attrs.evolve(lookup.report, seconds={"emit": 7.0}))
    assert later.save(tmp_path / "later.pte").read_bytes() == path.read_bytes()


def test_saving_what_was_loaded_gives_the_same_file(path, tmp_path):
    again = LoweredProgram.load(path).save(tmp_path / "again.pte")
    assert again.read_bytes() == path.read_bytes()


def test_a_pickled_program_runs(lookup):
    same(
        pickle.loads(pickle.dumps(lookup)).run(TOKENS, scale=SCALE), lookup.run(TOKENS, scale=SCALE)
    )


def test_run_program_takes_the_runner_from_the_file(lookup, path):
    found, _ = run_program(path, [TOKENS, SCALE])
    torch.testing.assert_close(found, lookup.run(TOKENS, scale=SCALE)["found"], rtol=0, atol=0)


def test_a_runner_that_is_passed_is_taken(path):
    runner = ExecuTorchRunner(timeout_s=7.0)
    assert LoweredProgram.load(path, runner=runner).runner is runner


def test_a_mapping_is_a_sample_of_keywords_in_any_order(lookup):
    class Both(nn.Linear):
        def forward(self, x, y):
            return super().forward(x) - super().forward(y)

    x, y = torch.randn(2, 8), torch.randn(2, 8)
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    result = qcore.quantize(Both(8, 4), quantizer, [{"x": x, "y": y}])
    program = quantizer.lower(result.model, {"x": x, "y": y})
    expected = program.run(x, y)
    for got in (*program.run_many([{"x": x, "y": y}, {"y": y, "x": x}]), program.run(y=y, x=x)):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"scales": SCALE}, "given the keyword arguments scales; it was captured with scale"),
        ({"scale": SCALE, "more": SCALE}, "scale, more; it was captured with scale"),
    ],
)
def test_keywords_that_do_not_fit_are_refused_by_name(lookup, keywords, message):
    with pytest.raises(RuntimeExecutionError, match=message):
        lookup.run(TOKENS, **keywords)


def test_keywords_are_refused_where_there_were_none(program, sample):
    with pytest.raises(RuntimeExecutionError, match="captured with none"):
        program.run(x=sample)


@pytest.mark.parametrize("lost", [1, 8, 40], ids=str)
def test_a_file_cut_short_behind_the_program_is_refused(path, lost):
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(RuntimeExecutionError, match=r"lookup\.pte is truncated"):
        LoweredProgram.load(path)


def test_a_file_damaged_behind_the_program_is_refused(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(RuntimeExecutionError, match=r"lookup\.pte is damaged"):
        LoweredProgram.load(path)


def test_a_file_of_a_later_release_is_refused(lookup, tmp_path, monkeypatch):
    monkeypatch.setattr("qcore.lowering.saved._FORMAT", 2)
    path = lookup.save(tmp_path / "later.pte")
    monkeypatch.undo()
    with pytest.raises(RuntimeExecutionError, match=r"later release .* --upgrade qcore-quant"):
        LoweredProgram.load(path)


def test_a_file_does_not_choose_what_is_imported(lookup, tmp_path):
    runner = attrs.evolve(lookup.runner, modules=("antigravity",))
    path = attrs.evolve(lookup, runner=runner).save(tmp_path / "odd.pte")
    with pytest.raises(RuntimeExecutionError, match=r"wants the module 'antigravity'.*runner="):
        LoweredProgram.load(path)


def test_a_backend_that_is_not_installed_leaves_the_program_to_its_format(lookup, tmp_path):
    path = attrs.evolve(lookup, backend="elsewhere").save(tmp_path / "other.pte")
    with pytest.warns(QcoreWarning, match="lowered for 'elsewhere'.*not installed here"):
        loaded = LoweredProgram.load(path)
    same(loaded.run(TOKENS, scale=SCALE), lookup.run(TOKENS, scale=SCALE))
