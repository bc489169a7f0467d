"""Each change that the core makes to torch and torchao fits them, and is needed.

A test that fails here says that a library does by itself what is changed: remove the change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torchao.quantization import quant_primitives
from torchao.quantization.pt2e import HistogramObserver as TorchaoHistogramObserver
from torchao.quantization.pt2e import qat_utils, utils

import qcore
from qcore.calibration import HistogramObserver
from qcore.compat import Requirement
from qcore.compat.fakes import quick_fakes
from qcore.compat.torch import (
    _COUNTED_NAMES,
    GRAD_MODE,
    GUARDS,
    MODULES,
    OVERLOADS,
    PACKETS,
    counted_names,
)
from qcore.compat.torchao import (
    _PARTIALS,
    _PREPARATION,
    _SPECS,
    AVERAGES,
    EXTREMES,
    FAKES,
    Int8DynamicActivationIntxWeightConfig,
    exact_folds,
    fusions_of_present_convolutions,
    quantize_,
)
from qcore.errors import LibraryChangedError
from qcore.source.export import export_quantized
from qcore.testing.compat import LibraryChanges


class TestChanges(LibraryChanges):
    package = "qcore"


ASKED = [
    PACKETS,
    OVERLOADS,
    GUARDS,
    GRAD_MODE,
    MODULES,
    FAKES,
    *EXTREMES,
    *AVERAGES,
    _SPECS,
    _PARTIALS,
    _PREPARATION,
]


@pytest.mark.parametrize("requirement", ASKED, ids=lambda one: f"{one.owner}.{one.names[0]}")
def test_what_quantizes_refuses_a_library_with_another_name(
    requirement: Requirement, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = torch.nn.Conv2d(3, 3, 1), torch.nn.ConvTranspose2d(3, 3, 1)
    model = torch.nn.Sequential(*layers).eval()
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    checked = Requirement.checked

    def renamed(self: Requirement) -> Any:
        if self is requirement:
            raise LibraryChangedError(self.owner)
        return checked(self)

    monkeypatch.setattr(Requirement, "checked", renamed)
    with pytest.raises(LibraryChangedError):
        qcore.quantize(model, quantizer, [torch.rand(1, 3, 4, 4)], is_qat=requirement in AVERAGES)


class _Owner:
    """Counts how often it is asked for an attribute."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        self.__dict__["asked"] += 1
        raise AttributeError(name)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("observer"):
            self.__dict__["asked"] += 1
        return super().__getattribute__(name)


def _lookups(observers: int) -> int:
    new_name = _COUNTED_NAMES.target().get_new_attr_name_with_prefix("observer_")
    owner = _Owner()
    for _ in range(observers):
        setattr(owner, new_name(owner), None)
    return owner.asked


def test_names_of_observers_cost_more_than_three_times_as_much_for_twice_as_many() -> None:
    assert _lookups(40) > 3 * _lookups(20)
    with counted_names():
        assert _lookups(40) < 3 * _lookups(20)


def test_batch_norms_are_fused_into_kinds_of_convolution_that_a_model_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Exported(Exception):
        pass

    def export(*_: Any) -> None:
        raise Exported

    monkeypatch.setattr(qat_utils, "_get_aten_graph_module_for_pattern", export)
    x = torch.rand(2, 3, 4, 4)
    model = torch.export.export(torch.nn.BatchNorm2d(3), (x,)).module(check_guards=False)
    with pytest.raises(Exported):
        qat_utils._fuse_conv_bn_qat(model)
    with fusions_of_present_convolutions():
        qat_utils._fuse_conv_bn_qat(model)


def test_torchao_folds_a_batch_norm_into_a_layer_that_something_else_reads() -> None:
    class Read(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = torch.export.export(Read().eval(), (torch.rand(1, 3, 4, 4),)).module(check_guards=False)
    with exact_folds():
        utils._fuse_conv_bn_(model)
    assert "batch_norm" in model.code
    utils._fuse_conv_bn_(model)
    assert "batch_norm" not in model.code


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def test_torchaos_search_for_a_range_takes_more_than_twice_as_long() -> None:
    torch.manual_seed(0)
    seconds = []
    for kind in (TorchaoHistogramObserver, HistogramObserver):
        observer = kind(dtype=torch.int8)
        observer(torch.cat([torch.randn(4096), torch.tensor([50.0])]))
        seconds.append(min(_seconds(observer._non_linear_param_search) for _ in range(3)))
    assert seconds[0] > 2 * seconds[1]


@pytest.mark.parametrize(("context", "many"), [(nullcontext, True), (quick_fakes, False)])
def test_sizes_of_a_quantized_tensor_take_many_operators(context: Any, many: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    quantize = torch.ops.torchao.quantize_affine.default
    with FakeTensorMode() as mode, context():
        x, scale = mode.from_tensor(torch.zeros(2, 4)), mode.from_tensor(torch.ones(2))
        zero = scale.int()
        dispatched: list[Any] = []
        theirs = mode.dispatch
        mode.dispatch = lambda *args, **kw: dispatched.append(args) or theirs(*args, **kw)
        result = quantize(x, [1, 4], scale, zero, torch.int8)
    assert result.shape == (2, 4)
    assert result.dtype == torch.int8
    assert (len(dispatched) > 1) is many


@pytest.fixture(scope="module")
def rows() -> torch.export.ExportedProgram:
    """A layer of 8da4w for a number of rows that varies."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 32)).eval()
    quantize_(model, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4))
    sizes = ({0: torch.export.Dim("rows", min=1, max=16)},)
    return export_quantized(model, torch.rand(4, 32), sizes)


@pytest.mark.parametrize(("context", "many"), [(nullcontext, True), (quick_fakes, False)])
def test_sizes_of_a_quantized_tensor_that_is_made_functional_take_many_operators(
    context: Any, many: bool, rows: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    theirs = quant_primitives._dequantize_affine_no_dtype_check

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return theirs(*args, **kwargs)

    monkeypatch.setattr(quant_primitives, "_dequantize_affine_no_dtype_check", counted)
    with context():
        rows.run_decompositions({})
    assert bool(calls) is many
