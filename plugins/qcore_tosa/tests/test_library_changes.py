"""Each change that is made to ExecuTorch's passes for Arm fits them, and is needed.

A test that fails here says that ExecuTorch does by itself what is changed: remove the change, or
say with ``only`` for which versions it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import qcore
from qcore.compat import Change
from qcore.testing.compat import LibraryChanges
from qcore_tosa import TosaQuantizer
from qcore_tosa.compat import executorch as compat

Operators = Callable[[Any], list[tuple[str, str, str]]]


class TestChanges(LibraryChanges):
    package = "qcore_tosa"


def _without(monkeypatch: pytest.MonkeyPatch, name: str) -> Change:
    change: Change = getattr(compat, name)
    monkeypatch.setattr(compat, name, attrs.evolve(change, only="<0"))
    return change


def _lowered(
    model: nn.Module, x: torch.Tensor, scheme: str, target: str = "TOSA-1.0+INT+int16"
) -> Any:
    quantizer = TosaQuantizer(target).set_global(scheme)
    return quantizer.lower(qcore.quantize(model.eval(), quantizer, [x]).model, (x,), check=False)


class _Residual(nn.Module):
    """A convolution and what goes around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + torch.relu(y)


def _accumulators(program: Any, operators: Operators) -> list[str]:
    return [kind for name, _, kind in operators(program) if name == "RESCALE"]


@pytest.mark.skipif(not compat._CONVOLUTIONS.needed, reason="ExecuTorch 1.5 rescales each reader")
def test_sixteen_bit_convolutions_give_int32_where_a_reader_rescales_to_it(
    tosa_operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.linspace(-1, 1, 4 * 9).reshape(1, 4, 3, 3)
    mended = tosa_operators(_lowered(_Residual(), x, "16a8w"))
    _without(monkeypatch, "_CONVOLUTIONS")
    try:
        theirs = tosa_operators(_lowered(_Residual(), x, "16a8w"))
    except qcore.QcoreError:
        return
    assert theirs != mended


def test_operators_that_differ_in_their_metadata_alone_are_taken_for_duplicates() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    nodes = [graph.call_function(torch.ops.aten.elu.default, (x,)) for _ in range(2)]
    for alpha, node in enumerate(nodes):
        node.meta["float_alpha"] = float(alpha)
        graph.call_function(torch.ops.aten.relu.default, (node,))
    found = compat._DUPLICATES.target()()

    def signatures() -> list[Any]:
        return [found._build_user_signature(node) for node in nodes]

    first, second = signatures()
    assert first == second
    with compat.mended_passes():
        first, second = signatures()
        assert first != second


def test_quantized_argmax_is_left_out_of_the_delegates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Position(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).argmax(-1).to(torch.int32)

    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    assert not _lowered(Position(), x, "8a8w").report.undelegated
    _without(monkeypatch, "_ARGMAX")
    assert _lowered(Position(), x, "8a8w").report.undelegated


def test_the_reasons_of_the_partitioner_are_a_table_without_nodes() -> None:
    node = torch.fx.Graph().placeholder("x")
    reporter = compat._REPORTER.target()()
    with compat.noted_rejections() as found:
        reporter.report_reject(node, "why")
    assert found == {node: "why"}
    assert not [value for value in vars(type(reporter)).values() if isinstance(value, property)]


@pytest.mark.skipif(not compat._TIDYING.needed, reason="ExecuTorch 1.5 moves views rightly")
def test_views_are_moved_by_shapes_of_before_other_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.max_pool1d(x, 2).sum(-1, keepdim=True).mean(1)

    x = torch.linspace(-1, 1, 60).reshape(1, 5, 12)
    assert not _lowered(Sums(), x, "8a8w").report.undelegated
    _without(monkeypatch, "_TIDYING")
    monkeypatch.setattr(compat, "_MOVES", [attrs.evolve(c, only="<0") for c in compat._MOVES])
    with pytest.raises(qcore.QcoreError, match="invalid for input of size 5"):
        _lowered(Sums(), x, "8a8w")


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        (nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2)), torch.rand(1, 2, 4, 4)),
        (nn.Sequential(nn.LogSoftmax(-1), nn.Linear(6, 5)), torch.rand(2, 3, 6)),
    ],
)
def test_what_becomes_a_table_gives_floats_until_it_is_one(
    layers: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _lowered(layers, x, "8a8w", "TOSA-1.0+FP+INT").report.undelegated
    _without(monkeypatch, "_RESULTS")
    _without(monkeypatch, "_TIDYING")
    with pytest.raises(qcore.QcoreError, match="float32|int8"):
        _lowered(layers, x, "8a8w", "TOSA-1.0+FP+INT")


@pytest.mark.skipif(not compat._TIDYING.needed, reason="ExecuTorch 1.5 keeps both")
def test_of_a_value_concatenated_with_itself_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pooled = nn.functional.max_pool2d(x, 2)
            return torch.cat([pooled, pooled], 1), x * 2

    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    assert _lowered(Twice(), x, "8a8w").run(x)[0].shape == (1, 2, 2, 2)
    _without(monkeypatch, "_CONCATENATIONS")
    with pytest.raises(RuntimeError, match="invalid for input of size 4"):
        _lowered(Twice(), x, "8a8w").run(x)


@pytest.mark.filterwarnings("ignore::qcore.errors.CalibrationWarning")
def test_factors_beyond_those_of_tosa_stop_the_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normalized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(x, dim=-1)

    x = torch.cat([torch.linspace(-1, 1, 8)[None], torch.zeros(1, 8)])
    assert not _lowered(Normalized(), x, "8a8w").report.undelegated
    _without(monkeypatch, "_SCALES")
    with pytest.raises(qcore.QcoreError, match="Shift should be in range"):
        _lowered(Normalized(), x, "8a8w")


@pytest.mark.skipif(not compat._TIDYING.needed, reason="ExecuTorch 1.5 has no such pass")
def test_where_the_pass_that_saves_permutes_stops_they_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(5, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    x = torch.rand(1, 5, 12)
    assert not _lowered(Attention(), x, "8a8w").report.undelegated
    _without(monkeypatch, "_TIDYING")
    with pytest.raises(qcore.QcoreError, match="Expected size for first two dimensions"):
        _lowered(Attention(), x, "8a8w")


class _Clamped(_Residual):
    """Its clamp has no bounds in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.hardtanh(self.conv(x), -1, 1)


@pytest.mark.parametrize("name", ["_BOUNDS", "_CLAMPS"])
def test_hardtanh_without_bounds_stops_the_lowering(monkeypatch, name):
    model, x = _Clamped(), torch.rand(1, 4, 6, 6)
    assert not _lowered(model, x, "8a8w", "TOSA-1.0+FP+INT").report.undelegated
    _without(monkeypatch, name)
    with pytest.raises(qcore.QcoreError, match="tuple index out of range"):
        _lowered(model, x, "8a8w", "TOSA-1.0+FP+INT")
