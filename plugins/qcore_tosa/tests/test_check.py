"""Programs of TOSA graphs are executed when they are made, without what is wrong in a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import qcore
from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram
from qcore.testing import Rounding
from qcore_executorch import import_executorch
from qcore_tosa import TosaQuantizer

X = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):  # type: ignore[misc]
    """Operators that are one delegate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.maximum(x, self.linear(x).relu())) * x


def lowered(
    model: nn.Module,
    samples: Sequence[Tensor] = (X, -X),
    rules: Mapping[str, str | None] = MappingProxyType({}),
    **options: object,
) -> tuple[LoweredProgram, Rounding]:
    quantizer = TosaQuantizer("TOSA-1.0+FP+INT").set_global("8a8w")
    for name, scheme in rules.items():
        quantizer.set_module_name(name, scheme)
    result = qcore.quantize(model.eval(), quantizer, [*samples, *(s * 0.9 for s in samples)])
    x = samples[0]
    return quantizer.lower(result.model, (x,), **options), Rounding.of_model(result.model, x)


def forget_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault in how maxima are written into a graph."""
    visitor = import_executorch("executorch.backends.arm.operators.op_tosa_maximum").MaximumVisitor
    right = visitor.define_node

    def forgetting(self, node, graph, inputs, output):  # type: ignore[no-untyped-def]
        right(self, node, graph, [inputs[0]] * 2, output)

    monkeypatch.setattr(visitor, "define_node", forgetting, raising=False)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maxima stop the writing of a graph."""
    visitor = import_executorch("executorch.backends.arm.operators.op_tosa_maximum").MaximumVisitor

    def refused(*args: object) -> None:
        raise RuntimeError("cannot write a maximum")

    monkeypatch.setattr(visitor, "define_node", refused, raising=False)


def test_a_program_that_is_right_says_that_it_was_executed() -> None:
    report = lowered(Chain())[0].report
    assert report.checked == "executed once and compared with the converted model"
    assert report.mended == ()
    assert "check" in report.seconds


@pytest.mark.parametrize(
    ("plant", "symptom"), [(forget_operand, "dB to the"), (refuse, "cannot write a maximum")]
)
def test_what_is_wrong_in_a_graph_is_found_and_left_out(monkeypatch, plant, symptom):
    plant(monkeypatch)
    program, expected = lowered(Chain())
    (mended,) = program.report.mended
    assert mended.operator == "aten.maximum.default"
    assert symptom in mended.symptom
    assert program.report.delegates > 0
    assert not expected.difference([program.run(X)])


def test_without_the_check_nothing_is_executed(monkeypatch):
    forget_operand(monkeypatch)
    program, expected = lowered(Chain(), check=False)
    assert program.report.checked == ""
    assert expected.difference([program.run(X)])


def test_what_no_choice_of_delegates_helps_is_raised_as_it_is():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            return torch.while_loop(lambda v: v.sum() < 9, lambda v: (v + 1,), (y,))[0]

    with pytest.raises(LoweringError, match=r"cannot execute torch.while_loop here"):
        lowered(Loop())


@pytest.mark.parametrize("samples", [[X], [X, -X]], ids=["above zero", "around zero"])
def test_a_clamp_behind_a_layer_may_share_its_range_with_anything(samples):
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return torch.maximum(x, self.linear(x).relu())

    torch.manual_seed(0)
    program, expected = lowered(Shares(), samples=samples)
    assert (program.report.mended, program.report.delegates) == ((), 1)
    assert not expected.difference([program.run(X)])


@pytest.mark.parametrize("rules", [{}, {"first": None}], ids=["quantized", "in float"])
def test_hardtanh_may_have_its_own_limits_behind_a_layer(rules):
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.last(nn.functional.hardtanh(self.first(x), -1, 1))

    torch.manual_seed(0)
    program, expected = lowered(Clamped(), rules=rules)
    assert (program.report.mended, program.report.delegates) == ((), 1)
    assert not expected.difference([program.run(X)])


def test_a_form_that_negates_rescales():
    class Sloped(nn.Module):
        def __init__(self):
            super().__init__()
            self.prelu = nn.PReLU()

        def forward(self, x):
            return self.prelu(nn.functional.avg_pool1d(x, 2))

    # Means are smaller than what they share the range of.
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    program, _ = lowered(Sloped(), samples=[x, x.flip(0)])
    assert (program.report.mended, program.report.delegates) == ((), 1)
