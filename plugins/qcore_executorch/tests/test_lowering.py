"""The way into ExecuTorch: what is kept, what is refused, what is reported."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch._ops import OperatorBase

from qcore.errors import LoweringError, QcoreWarning, RuntimeUnavailableError
from qcore.quiet import quiet
from qcore.report import LoweringReport
from qcore_executorch import ExecuTorchRunner, import_executorch

from .conftest import lower, xnnpack_partitioner


class Stray(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tail = torch.nn.Sequential(torch.nn.Tanh())

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        whole = ops.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
        return self.tail(ops.dequantize_per_tensor.default(whole, 0.1, 0, -128, 127, torch.int8))


@pytest.fixture(scope="module")
def stray():
    """A program with a quantize/dequantize pair and no delegate."""
    import_executorch("executorch.exir")  # registers the decomposed quantize operators
    model, x = Stray(), torch.randn(2, 3)
    exported = torch.export.export(model, (x,))
    return lower(exported, (x,), partitioners=[]), model(x), x


def test_importing_the_package_imports_neither_torch_nor_executorch():
    code = "import sys, qcore.lowering; print({'torch', 'executorch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_lowering_prints_nothing(exported, sample, capfd):
    lower(exported.module(), (sample,))
    assert capfd.readouterr() == ("", "")


def test_quick_decompositions_change_no_byte_and_leave_torch_as_it_was(
    exported, sample, monkeypatch
):
    before = OperatorBase.py_impl
    quick = lower(exported, (sample,)).buffer
    assert OperatorBase.py_impl is before
    monkeypatch.setattr("qcore_executorch.lowering.quick_decompositions", nullcontext)
    assert lower(exported, (sample,)).buffer == quick


def test_importing_executorch_prints_nothing():
    code = (
        "from qcore_executorch import import_executorch as load\n"
        "load('executorch.backends.xnnpack.partition.xnnpack_partitioner')\n"
        "load('executorch.kernels.quantized')\n"
        "load('executorch.runtime')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_missing_executorch_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install qcore-executorch"):
        import_executorch("executorch.exir")


def test_the_report_counts_what_was_delegated(program):
    assert program.report.delegates == 2
    assert program.report.delegated_ops["aten.convolution.default"] == 1
    assert len(program.delegated) == len(program.report.delegated) == 3


def test_an_undelegated_operator_is_named_with_its_module_and_reason(program):
    nodes = {node.operator: node for node in program.report.undelegated}
    assert nodes["aten.cumsum.default"].module == "block"
    assert nodes["aten.cumsum.default"].reason == "no partitioner takes this operator"
    assert "support page lists for this backend.\n" in f"{program.report}\n"


def test_the_reason_that_the_partitioner_states_is_kept(program):
    nodes = {node.operator: node for node in program.report.undelegated}
    assert "keepdim" in nodes["aten.mean.dim"].reason
    assert nodes["aten.mean.dim"].advice == "", "the reason says what it takes"


def test_the_report_says_that_undelegated_operators_still_run(program):
    text = str(program.report)
    assert "they still run" in text
    assert "[block/aten_cumsum_default]" in text


def test_the_report_has_the_size_and_the_time_of_each_stage(program):
    assert program.report.pte_bytes == len(program.buffer)
    assert list(program.report.seconds) == ["rewrite", "partition", "emit"]


def test_the_report_is_json(program):
    data = json.loads(program.report.to_json())
    assert data["undelegated"][0]["operator"] == "aten.cumsum.default"
    assert data["delegated_ops"] == program.report.delegated_ops


def test_an_empty_report_prints():
    assert str(LoweringReport(backend="vgf")).startswith("vgf: 0 delegates with 0 compute nodes")


def test_stray_quantize_and_dequantize_are_named_with_what_they_feed(stray):
    program, _, _ = stray
    quantize, dequantize = program.report.stray
    assert quantize.operator == "quantized_decomposed.quantize_per_tensor.default"
    assert quantize.feeds == (dequantize.name,)
    assert dequantize.feeds == ("aten_tanh_default",)
    assert f"{dequantize.name} " in str(program.report)


def test_stray_quantize_and_dequantize_are_no_compute_nodes(stray):
    program, _, _ = stray
    assert program.report.undelegated_ops == {"aten.tanh.default": 1}


def test_a_program_with_stray_nodes_still_runs(stray):
    program, expected, x = stray
    torch.testing.assert_close(program.run(x), expected)


class Cast(torch.nn.Module):
    def forward(self, x):
        return x.to(torch.float64).clone(memory_format=torch.contiguous_format)


def test_operators_are_reported_as_users_write_them():
    x = torch.randn(2, 3)
    report = lower(torch.export.export(Cast(), (x,)), (x,), partitioners=[]).report
    assert [node.operator for node in report.undelegated] == ["aten.to.dtype", "aten.clone.default"]


class Max(torch.nn.Module):
    def forward(self, x):
        return torch.max(x, -1), x


def test_outputs_of_torchs_own_tuple_types_come_back_as_these():
    x = torch.randn(2, 3)
    program = lower(torch.export.export(Max(), (x,)), (x,), partitioners=[])
    largest, same = program.run(x)
    assert isinstance(largest, torch.return_types.max)
    torch.testing.assert_close((*largest, same), (*torch.max(x, -1), x))


def test_an_exported_program_is_lowered_as_captured_and_left_alone(exported, program, sample):
    before = [(node.name, sorted(node.meta)) for node in exported.graph.nodes]
    lowered = lower(exported, None)
    assert lowered.inputs == program.inputs
    assert [(node.name, sorted(node.meta)) for node in exported.graph.nodes] == before


def test_a_dynamic_batch_is_kept_without_being_asked_for(program):
    assert program.inputs[0].bounds[0] == (1, 8)


def test_the_dynamic_shapes_given_are_used(exported, sample):
    batch = torch.export.Dim("batch", min=1, max=4)
    lowered = lower(exported.module(), (sample,), dynamic_shapes=({0: batch},))
    assert lowered.inputs[0].bounds[0] == (1, 4)


def test_channels_last_example_inputs_give_the_same_program(exported, program, sample):
    other = sample.to(memory_format=torch.channels_last)
    assert lower(exported.module(), (other,)).buffer == program.buffer


def test_dropping_metadata_leaves_the_program_of_a_quantized_model_unchanged(net, sample):
    source = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    quantizer = import_executorch(source)
    with quiet():
        from executorch.exir import to_edge_transform_and_lower
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        captured = torch.export.export(net, (sample,)).module(check_guards=False)
        config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(captured, quantizer.XNNPACKQuantizer().set_global(config))
        prepared(sample)
        converted = convert_pt2e(prepared)
        again = torch.export.export(converted, (sample,))
        edge = to_edge_transform_and_lower(again, partitioner=[xnnpack_partitioner()])
        plain = bytes(edge.to_executorch().buffer)
    assert lower(converted, (sample,)).buffer == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x, x), "2 example inputs were given, the model takes 1: x: float32"),
        (lambda x: (x[0],), "example input 'x'.*3 dimensions"),
        (lambda x: (x.long(),), r"example input 'x'.*got int64.*\.to\(torch\.float32\)"),
        (lambda x: (x[..., :7],), "example input 'x'.*dimension 3 is 7"),
        (lambda x: "x", "must be a tuple of the model's arguments, got a str"),
    ],
    ids=["count", "rank", "dtype", "size", "no tensors"],
)
def test_example_inputs_that_do_not_fit_are_refused_by_name(exported, sample, change, message):
    with pytest.raises(LoweringError, match=message):
        lower(exported.module(), change(sample))


def test_a_graph_module_needs_example_inputs(exported):
    with pytest.raises(LoweringError, match="Pass example_inputs"):
        lower(exported.module(), None)


def test_an_eager_module_is_refused(net, sample):
    with pytest.raises(LoweringError, match=r"Cannot lower a .*Net\. Pass the GraphModule"):
        lower(net, (sample,))


def test_a_dimension_without_an_upper_limit_is_refused(net, sample):
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net, (sample,), dynamic_shapes=dynamic)
    for check in (False, True):
        with pytest.raises(LoweringError, match=r"^Lowering .* upper limit .* 'x'.*max=...\)\.$"):
            lower(exported, None, check=check)


def test_a_failure_inside_executorch_keeps_its_cause(exported, sample):
    class Broken:
        def __getattr__(self, name):
            raise KeyError("a partitioner's bug")

    with pytest.raises(LoweringError, match=r"stage 'partition': .*bug") as raised:
        lower(exported, None, partitioners=[Broken()])
    assert isinstance(raised.value.__cause__, KeyError)


def test_the_output_has_the_structure_of_the_model_s():
    class Model(torch.nn.Module):
        def forward(self, pair, scale):
            return {"sum": pair[0] + pair[1], "rest": (pair[0] * scale, scale)}

    x = torch.ones(2, 3)
    exported = torch.export.export(Model(), ((x, x), 2.5))
    program = lower(exported.module(), ((x, x), 2.5))
    output = program.run((x, x), 2.5)
    assert output["rest"][1] == 2.5
    torch.testing.assert_close(output["rest"][0], x * 2.5)


def test_the_bodies_of_a_conditional_are_in_the_program_and_in_the_report():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: self.linear(x), lambda x: x.tanh(), (x,))

    model, x = Model(), torch.ones(2, 3)
    program = lower(torch.export.export(model, (x,)), (x,))
    plus, minus = program.run_many([x, -x])
    torch.testing.assert_close(plus, model(x).detach())
    torch.testing.assert_close(minus, model(-x).detach())
    named = [node.operator for node in (*program.report.undelegated, *program.report.delegated)]
    assert "aten.tanh.default" in named
    assert "cond" not in named


def test_state_lasts_as_long_as_a_session():
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count.add_(1)
            return x + self.count

    x = torch.zeros(1)
    program = lower(torch.export.export(Counter(), (x,)), None)
    with program.session() as run:
        assert [run(x).item() for _ in range(3)] == [1, 2, 3]
    assert program.run(x).item() == 1


def test_lowering_leaves_the_garbage_collector_as_it_was(exported):
    before = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(LoweringError):
        lower(exported, None, partitioners=[None])
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_quiet_hides_a_library_s_warnings_and_shows_the_user_s(recwarn):
    with quiet():
        warnings.warn_explicit("noise", UserWarning, "x.py", 1, module="executorch.exir")
        warnings.warn_explicit("mine", UserWarning, "y.py", 1, module="my_model")
        warnings.warn_explicit("ours", QcoreWarning, "z.py", 1, module="qcore.flow")
    assert [str(w.message) for w in recwarn] == ["mine", "ours"]


def test_quiet_hides_a_library_s_log_records_and_shows_the_user_s(caplog):
    with caplog.at_level(logging.INFO), quiet():
        logging.getLogger("executorch.exir").warning("noise")
        logging.getLogger("my_model").warning("mine")
    assert caplog.messages == ["mine"]


def test_quiet_installs_no_handler(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    with quiet():
        logging.info("a library logs through the root logger")
    assert logging.root.handlers == []


def test_a_runner_refuses_no_time_and_no_threads():
    with pytest.raises(ValueError, match="timeout_s"):
        ExecuTorchRunner(timeout_s=0)
    with pytest.raises(ValueError, match="threads"):
        ExecuTorchRunner(threads=0)


def test_a_model_that_writes_into_its_input_returns_its_outputs_alone():
    class Writing(torch.nn.Module):
        def forward(self, x, y):
            z = x * 2
            y.flatten().relu_()
            return z, x.relu_() + y

    x = torch.tensor([[-1.0, 1.0]])
    expected = Writing()(x.clone(), x.clone())
    program = lower(torch.export.export(Writing(), (x, x)), (x, x), partitioners=[])
    for made, wanted in zip(program.run(x, x), expected, strict=True):
        torch.testing.assert_close(made, wanted)
    assert x[0, 0] == -1
