"""A small backend made with the toolkit, so that the core is tested without a plugin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import define
from torch.fx import GraphModule

import qcore
from qcore import registry
from qcore.annotation import (
    CLAMPS,
    ConcatRule,
    ElementwiseRule,
    GemmRule,
    OperatorPattern,
    PassThroughRule,
    SameRangeRule,
    SupportTable,
    annotate_graph,
    scalars_to_attributes,
)
from qcore.annotation.checks import constants_fit_histogram, float_inputs, no_alpha, static_weight
from qcore.quantizer import Quantizer
from qcore.schemes import QuantizationScheme

aten = torch.ops.aten

TOY_TABLE = SupportTable(
    (
        OperatorPattern(
            "linear",
            (aten.linear.default,),
            GemmRule(),
            fuses=CLAMPS,
            dynamic=True,
            checks=(float_inputs, static_weight),
        ),
        OperatorPattern(
            "conv2d",
            (aten.conv2d.default, aten.conv2d.padding),
            GemmRule(),
            fuses=CLAMPS,
            folds_batch_norm=True,
            checks=(float_inputs, static_weight),
        ),
        *(
            OperatorPattern(
                name,
                (target,),
                ElementwiseRule(),
                fuses=CLAMPS,
                checks=(float_inputs, no_alpha, constants_fit_histogram),
            )
            for name, target in (("add", aten.add.Tensor), ("mul", aten.mul.Tensor))
        ),
        OperatorPattern("cat", (aten.cat.default,), ConcatRule(), checks=(float_inputs,)),
        OperatorPattern(
            "pool", (aten.adaptive_avg_pool2d.default,), SameRangeRule(), checks=(float_inputs,)
        ),
        OperatorPattern(
            "move",
            (
                aten.relu.default,
                aten.view.default,
                aten.permute.default,
                aten.slice.Tensor,
                aten.max_pool2d.default,
                aten.pad.default,
            ),
            PassThroughRule(),
            follows_input=True,
        ),
    ),
    advice={aten.sigmoid.default: "Use hardsigmoid."},
)

TOY_SCHEMES = tuple(
    QuantizationScheme(8, 8, granularity, is_dynamic, is_qat)
    for is_qat in (False, True)
    for is_dynamic in (False, True)
    for granularity in ("per_channel", "per_tensor")
)


@define
class ToyBackend:
    """Annotates a handful of operators and lowers nothing."""

    api_version: ClassVar[int] = 2
    target: str = "default"

    @qcore.hookimpl
    def supported_schemes(self) -> Any:
        return TOY_SCHEMES

    @qcore.hookimpl
    def transform_for_annotation(self, model: GraphModule, plan: Any) -> GraphModule:
        return scalars_to_attributes(model, plan, (aten.add.Tensor, aten.mul.Tensor))

    @qcore.hookimpl
    def annotate(self, model: GraphModule, plan: Any) -> Any:
        return annotate_graph(model, plan, TOY_TABLE, "toy")

    @qcore.hookimpl
    def lower(self, program: Any, options: Any) -> Any:
        raise qcore.QcoreError("toy lowers nothing")


@pytest.fixture
def toy_backend() -> type:
    """The class of the toy backend, for tests that break it."""
    return ToyBackend


@pytest.fixture
def toy() -> Iterator[Callable[[], Quantizer]]:
    """Builds quantizers of the toy backend."""
    qcore.register_backend("toy", ToyBackend)
    yield lambda: qcore.get_quantizer("toy")
    registry.unregister_backend("toy")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lays a distribution with entry points on the import path, as pip would."""

    def lay(
        distribution: str, module: str, source: str, group: str = "qcore.backends", **points: str
    ) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return lay


@pytest.fixture
def capture() -> Callable[..., GraphModule]:
    """Captures a module as users do in the standard flow."""

    def export(model: torch.nn.Module, *inputs: torch.Tensor, **options: Any) -> GraphModule:
        return torch.export.export(model.eval(), inputs, **options).module()

    return export
