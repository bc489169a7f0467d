"""What a rejection advises works: each is followed, and the operator is quantized then."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from attrs import define, field, frozen
from torch import Tensor, nn

import qcore
from qcore import registry
from qcore.annotation import (
    INTEGERS_ONLY,
    MOVE_OUT,
    ElementwiseRule,
    GemmRule,
    OperatorPattern,
    SupportTable,
    annotate_graph,
)
from qcore.capture import Sample, capture
from qcore.report import AnnotationReport
from qcore.schemes import QuantizationScheme
from qcore.testing.requirements import Requirements

aten = torch.ops.aten
ROOT = Path(__file__).parents[1]
SAMPLES = [torch.rand(1, 4, 8, 8) for _ in range(4)]
PICTURE, ROW = torch.rand(1, 4, 8, 8), torch.rand(2, 8)


@define
class Fussy:
    """A backend with one row for each constraint on configurations."""

    api_version: ClassVar[int] = 2
    table: ClassVar[SupportTable] = SupportTable(
        (
            OperatorPattern("add", (aten.add.Tensor,), ElementwiseRule()),
            OperatorPattern("relu", (aten.relu.default,), ElementwiseRule()),
            OperatorPattern(
                "linear", (aten.linear.default,), GemmRule(), dynamic=True, static=False
            ),
            OperatorPattern("conv2d", (aten.conv2d.default,), GemmRule(), granularity="per_tensor"),
        )
    )

    @qcore.hookimpl
    def supported_schemes(self) -> Any:
        return tuple(
            QuantizationScheme(8, bits, granularity, is_dynamic)
            for granularity in ("per_channel", "per_tensor")
            for bits, is_dynamic in ((8, False), (8, True), (None, False))
        )

    @qcore.hookimpl
    def annotate(self, model: torch.fx.GraphModule, plan: Any) -> AnnotationReport:
        return annotate_graph(model, plan, self.table, "fussy")

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        raise qcore.QcoreError("fussy lowers nothing")


@pytest.fixture(autouse=True)
def fussy() -> Iterator[None]:
    qcore.register_backend("fussy", Fussy)
    yield
    registry.unregister_backend("fussy")


class Fn(nn.Module):  # type: ignore[misc]
    """A function behind a layer that is quantized, and before another."""

    def __init__(self, function: Callable[..., Any], x: Tensor = PICTURE) -> None:
        super().__init__()
        self.function = function
        wide = x.dim() == 4
        self.first = nn.Conv2d(4, 4, 1) if wide else nn.Linear(8, 8)
        self.kernel = nn.Parameter(torch.rand(4, 1, 3, 3))
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1))

    def odd(self, x: Tensor) -> Tensor:
        """Return what no backend quantizes."""
        return torch.special.i0(x)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.function(y) if isinstance(self.function, nn.Module) else self.function(self, y)


@frozen
class Case:
    """Advice, a model that gets it, and what becomes of the model that follows it.

    Attributes:
        backend: Name of the backend.
        advice: Its words.
        refused: What is computed behind a layer, or a module.
        followed: What to compute in its place; the same, where another scheme is advised.
        x: The input.
        scheme: What the refused model is given.
        then: What the mended model is given.
        is_exact: Whether both compute the same.
    """

    backend: str
    advice: str
    refused: Any
    followed: Any = None
    x: Tensor = field(default=PICTURE, repr=False)
    scheme: str = "8a8w"
    then: str = "8a8w"
    is_exact: bool = True

    def __str__(self) -> str:
        return f"{self.backend}-{self.advice[:40]}"


def dilated(kernel: Tensor) -> Tensor:
    """Return a kernel of 3 by 3 with the values of one of 2 by 2, dilated by 2."""
    wide = torch.zeros(*kernel.shape[:2], 3, 3)
    wide[..., ::2, ::2] = kernel
    return wide


def widened(layer: nn.Linear) -> nn.Module:
    wide = nn.Linear(8, 8)
    wide.weight, wide.bias = nn.Parameter(F.pad(layer.weight, (0, 2))), layer.bias
    return nn.Sequential(nn.ZeroPad1d((0, 2)), wide)


def transposed(kernel: Callable[[Tensor], Tensor], dilation: int) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 4, 2, dilation=dilation)
    layer.weight = nn.Parameter(kernel(layer.weight.detach()))
    layer.kernel_size = tuple(layer.weight.shape[2:])
    return layer


def written(m: Fn, x: Tensor) -> Tensor:
    y = x[:, :2]
    y.mul_(2.0)
    return y + x[:, 2:] * x[:, :2]


SELECT = "Select it with set_global(...)."
SELECT_PAD = "Select it with set_global(...): it is then written as slices and cat."
LEAVE = "Leave it in float: it then runs on a portable kernel."
NEXT_TO_IT = "It is quantized when an operator next to it is."
STATIC_OR_FLOAT = "Give it a static configuration, or leave it in float."
FLOAT32 = "Cast the model to float32 first."
SMALLER = "Use a smaller one: what is far outside the range of the other values saturates anyway."
NARROW = nn.Linear(6, 8)
TRANSPOSED = nn.ConvTranspose2d(4, 4, 2, groups=2)

CASES = (
    Case(
        "tosa",
        "Give it a per-tensor configuration, such as '8a8w per-tensor'.",
        lambda m, x: F.conv_transpose2d(x, m.kernel * x.max(), groups=4),
        then="8a8w per-tensor",
    ),
    Case(
        "tosa",
        "Use dilation=1, with a kernel that has zeros between its values.",
        transposed(lambda kernel: kernel, 2),
        transposed(dilated, 1),
    ),
    Case(
        "tosa",
        "Cast outside of the model, or int8, int16 or int32 to float32 in it.",
        lambda m, x: x.to(torch.int32),
        lambda m, x: x,
        is_exact=False,
    ),
    Case(
        "tosa",
        NEXT_TO_IT,
        lambda m, x: m.odd(x).transpose(1, 2),
        lambda m, x: x.transpose(1, 2),
        is_exact=False,
    ),
    Case(
        "xnnpack",
        "Multiply before or after torch.nn.functional.elu(x, alpha) instead.",
        lambda m, x: torch.ops.aten.elu.default(x, 0.5, 2.0),
        lambda m, x: F.elu(x, 0.5) * 2.0,
    ),
    Case(
        "xnnpack",
        "Use groups=1, or leave it in float.",
        TRANSPOSED,
        nn.ConvTranspose2d(4, 4, 2),
        is_exact=False,
    ),
    Case(
        "xnnpack",
        "Give it a static configuration.",
        nn.Conv1d(8, 8, 1),
        x=ROW[..., None],
        scheme="8a8w dynamic",
    ),
    Case(
        "xnnpack",
        "Give it a static configuration.",
        nn.Conv2d(4, 4, 3, groups=4),
        scheme="8a8w dynamic",
    ),
    Case(
        "xnnpack",
        STATIC_OR_FLOAT,
        lambda m, x: x + x.relu(),
        scheme="8a8w dynamic",
    ),
    Case(
        "xnnpack",
        "Slice instead.",
        lambda m, x: F.pad(x, (-1, -1)),
        lambda m, x: x[..., 1:-1],
    ),
    Case(
        "xnnpack",
        "Pool to a size of 1.",
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        is_exact=False,
    ),
    Case(
        "xnnpack",
        "Only weights that are parameters or buffers are quantized.",
        lambda m, x: F.conv2d(x, m.kernel * x.max(), groups=4),
        lambda m, x: F.conv2d(x, m.kernel, groups=4),
        is_exact=False,
    ),
    Case(
        "xnnpack",
        "Join slices of step 1 with cat.",
        lambda m, x: x[:, ::2],
        lambda m, x: torch.cat([x[:, :1], x[:, 2:3]], 1),
    ),
    Case(
        "xnnpack",
        "It follows special_i0: it is quantized when that is.",
        lambda m, x: m.odd(x).transpose(1, 2),
        lambda m, x: x.transpose(1, 2),
        is_exact=False,
    ),
    Case(
        "xnnpack",
        SMALLER,
        lambda m, x: x.relu() + 1e30,
        lambda m, x: x.relu() + 1e3,
        is_exact=False,
    ),
    Case(
        "xnnpack",
        "Multiply the operand instead.",
        lambda m, x: torch.add(x, x.relu(), alpha=3),
        lambda m, x: x + x.relu() * 3,
    ),
    Case("xnnpack", FLOAT32, nn.Linear(8, 8).half(), nn.Linear(8, 8), ROW.half(), is_exact=False),
    Case("tosa", FLOAT32, lambda m, x: x.half().exp(), lambda m, x: x.exp(), is_exact=False),
    Case(
        "xnnpack",
        "Compute a new value instead: the operator without the underscore at its end.",
        written,
        lambda m, x: x[:, :2] * 2.0 + x[:, 2:] * (x[:, :2] * 2.0),
    ),
    Case(
        "fussy",
        "Give it a configuration with input_activation set, or leave it in float.",
        lambda m, x: x + x.relu(),
        scheme="8w",
    ),
    Case(
        "fussy",
        STATIC_OR_FLOAT,
        lambda m, x: x + x.relu(),
        scheme="8a8w dynamic",
    ),
    Case(
        "fussy",
        "Give it a dynamic configuration, or leave it in float.",
        nn.Linear(8, 8),
        x=ROW,
        then="8a8w dynamic",
    ),
    Case(
        "fussy",
        'Give it one that scales them per-tensor, such as "8a8w per-tensor".',
        nn.Conv2d(4, 4, 1),
        then="8a8w per-tensor",
    ),
    Case("xnnpack", MOVE_OUT, lambda m, x: m.odd(x), lambda m, x: x, is_exact=False),
    Case(
        "vulkan",
        "Add inputs that are zero, with weights that are.",
        NARROW,
        widened(NARROW),
        torch.rand(2, 6),
        scheme="8w",
        then="8w",
    ),
)


def module_of(given: Any, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return (given if isinstance(given, nn.Module) else Fn(given, x)).eval()


def report_of(backend: str, model: nn.Module, x: Tensor, scheme: str) -> AnnotationReport:
    options = Requirements.declared_by(backend).options
    quantizer = qcore.get_quantizer(backend, **options).set_global(scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = quantizer.transform_for_annotation(capture(model, Sample.of((x,))))
        quantizer.annotate(graph)
    assert quantizer.report is not None
    return quantizer.report


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_advised_is_quantized(case: Case) -> None:
    model = module_of(case.refused, case.x)
    refused = report_of(case.backend, model, case.x, case.scheme)
    assert case.advice in {decision.advice for decision in refused.in_float}, str(refused)
    x = case.x.float()
    mended = module_of(case.refused if case.followed is None else case.followed, x)
    report = report_of(case.backend, mended, x, case.then)
    assert case.advice not in {decision.advice for decision in report.in_float}, str(report)
    left = [d for d in report.in_float if d.reason != INTEGERS_ONLY.reason]
    assert not left or len(report.quantized) > len(refused.quantized), str(report)
    if case.is_exact:
        torch.testing.assert_close(mended(x), model(case.x))


#: For each kind of operator, models of which one computes it, by what it is called in ATen.
KINDS: dict[str, Any] = {
    "elu": nn.ELU(),
    "relu": nn.ReLU(),
    "hardtanh": nn.Hardtanh(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "max_pool1d": lambda m, x: F.max_pool1d(x.flatten(2), 2),
    "avg_pool1d": lambda m, x: F.avg_pool1d(x.flatten(2), 2),
    "adaptive_avg_pool1d": lambda m, x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "max_pool2d": nn.MaxPool2d(2),
    "avg_pool2d": nn.AvgPool2d(2),
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d(1),
    "batch_norm": nn.BatchNorm2d(4),
    "layer_norm": nn.LayerNorm(8),
    "group_norm": nn.GroupNorm(2, 4),
    "upsample_nearest2d": nn.Upsample(scale_factor=2),
    "upsample_bilinear2d": nn.UpsamplingBilinear2d(scale_factor=2),
    "mul": lambda m, x: x * (1 / 3),
}
#: Operators that a backend does not quantize, though it does others of their kind.
UNLIKE: dict[str, dict[str, Any]] = {
    "xnnpack": {
        "leaky_relu": nn.LeakyReLU(),
        "tanh": nn.Tanh(),
        "avg_pool2d": nn.AvgPool2d(2),
        "group_norm": nn.GroupNorm(2, 4),
        "div": lambda m, x: x / (x * x + 1),
    },
    "tosa": {"upsample_bicubic2d": nn.Upsample(scale_factor=2, mode="bicubic")},
}


@pytest.mark.parametrize(
    ("backend", "operator"), [(backend, name) for backend in UNLIKE for name in UNLIKE[backend]]
)
def test_operators_that_are_advised_in_place_of_another_are_quantized(
    backend: str, operator: str
) -> None:
    model = Fn(UNLIKE[backend][operator]).eval()
    advice = [d.advice for d in report_of(backend, model, PICTURE, "8a8w").in_float]
    (named,) = (m[1] for a in advice if (m := re.match("Use (.+) in its place, or", a)))
    for name in named.split(" or "):
        report = report_of(backend, Fn(KINDS[name]).eval(), PICTURE, "8a8w")
        assert not report.in_float, str(report)


@pytest.mark.parametrize(
    ("function", "node", "advice"),
    [
        (lambda m, x: x + x.relu(), "add", SELECT),
        (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad", SELECT_PAD),
    ],
    ids=["add", "pad"],
)
def test_what_no_rule_selects_is_quantized_once_set_global_does(
    function: Any, node: str, advice: str
) -> None:
    model = Fn(function).eval()
    quantizer = qcore.get_quantizer("xnnpack").set_module_name("first", "8a8w")
    assert qcore.quantize(model, quantizer, SAMPLES).report[node].advice == advice
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    assert qcore.quantize(model, quantizer, SAMPLES).report[node].is_quantized


def test_what_is_advised_to_be_left_in_float_is_lowered_and_right_beside_the_rest() -> None:
    model = Fn(lambda m, x: x.mean(1)).eval()
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    result = qcore.quantize(model, quantizer, SAMPLES)
    assert result.report["mean"].advice == LEAVE
    program = quantizer.lower(result.model, (PICTURE,))
    assert [node.operator for node in program.report.undelegated] == ["aten.mean.dim"]
    torch.testing.assert_close(program.run(PICTURE), result.model(PICTURE), atol=0.02, rtol=0)


def advised() -> Iterator[str]:
    """Yield a pattern for what each rejection in the sources advises."""
    for folder in ("qcore", "plugins"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            known = {
                target.id: node.value
                for node in tree.body
                if isinstance(node, ast.AnnAssign) and isinstance(target := node.target, ast.Name)
            }
            for call in ast.walk(tree):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Rejection":
                    text = call.args[1] if len(call.args) > 1 else None
                    yield _pattern(known.get(text.id) if isinstance(text, ast.Name) else text)


def _pattern(text: ast.expr | None) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts
    )


def test_the_advice_of_every_rejection_is_tried() -> None:
    tried = {SELECT, SELECT_PAD, LEAVE, *(case.advice for case in CASES)}
    patterns = set(advised())
    assert len(patterns) > 20
    assert [p for p in patterns if not any(re.fullmatch(p, advice) for advice in tried)] == []
