"""Converted models for the tests of lowering by way of TOSA.

They come from ExecuTorch's own quantizers, so that these tests judge the lowering alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

Converted = tuple[GraphModule, ExportedProgram]


def arm_converted(
    compile_spec: Any,
    model: nn.Module,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    config: Any = None,
    io: Any = None,
    in_float: str | None = None,
) -> Converted:
    """Quantize a model for a compile specification.

    Returns:
        The converted model, and the same as ``Quantizer.lower`` passes it to a backend.
    """
    from qcore.lowering import export_for_lowering
    from qcore.quiet import quiet
    from qcore_executorch import import_executorch

    arm = import_executorch("executorch.backends.arm.quantizer")
    with quiet():
        quantizer = {"vgf": arm.VgfQuantizer, "vela": arm.EthosUQuantizer}[
            compile_spec._get_output_format()
        ](compile_spec)
        quantizer.set_global(config or arm.get_symmetric_quantization_config())
        if io is not None:
            quantizer.set_io(io)
        if in_float is not None:
            quantizer.set_module_name(in_float, None)
        graph = torch.export.export(model.eval(), samples[0]).module(check_guards=False)
        converted = quantizer._quantize_with_submodules(graph, list(samples))
        return converted, export_for_lowering(converted, samples[0])


def bodies_converted(compile_spec: Any, model: nn.Module, samples: Sequence[Any]) -> Converted:
    """Quantize a model with weights in the bodies of conditionals.

    ExecuTorch's own flow cannot: its observers stop the tracing of the bodies. Its annotation does,
    in qcore's flow.
    """
    from qcore.calibration import CalibrationData
    from qcore.capture import capture
    from qcore.lowering import export_for_lowering
    from qcore.pt2e import PreparedModel
    from qcore.quiet import quiet
    from qcore.report import AnnotationReport, write_decisions
    from qcore_executorch import import_executorch

    arm = import_executorch("executorch.backends.arm.quantizer")
    base = {"vgf": arm.VgfQuantizer, "vela": arm.EthosUQuantizer}[compile_spec._get_output_format()]

    class Annotation(base):
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            return model

        def annotated(self, model: GraphModule) -> AnnotationReport:
            report = AnnotationReport("arm")
            write_decisions(super().annotate(model), report)
            return report

    with quiet():
        quantizer = Annotation(compile_spec)
        quantizer.set_global(arm.get_symmetric_quantization_config())
        first = CalibrationData.of(samples).first
        graph = capture(model.eval(), first, dynamic_shapes=None, is_qat=False)
        prepared = PreparedModel.prepare(graph, quantizer, False)
        with torch.no_grad():
            for sample in samples:
                prepared.model(*sample)
        converted = prepared.convert()
        return converted, export_for_lowering(converted, samples[0])


def operators_in(program: Any) -> list[tuple[str, str, str]]:
    """Return name, type of the first input and type of the result of each operator in TOSA graphs.

    Constants are left out.
    """
    from tosa import DType, Op, TosaGraph

    names, types = (
        {value: name for name, value in vars(kind).items() if isinstance(value, int)}
        for kind in (Op.Op, DType.DType)
    )
    found = []
    for delegate in program.delegates:
        block = TosaGraph.TosaGraph.GetRootAs(delegate.compilation.tosa).Regions(0).Blocks(0)
        tensors = [block.Tensors(i) for i in range(block.TensorsLength())]
        dtypes = {tensor.Name(): types[tensor.Type()] for tensor in tensors}
        for i in range(block.OperatorsLength()):
            operator = block.Operators(i)
            if operator.InputsLength():
                source, result = operator.Inputs(0), operator.Outputs(0)
                found.append((names[operator.Op()], dtypes[source], dtypes[result]))
    return found


@pytest.fixture(scope="session")
def tosa_operators() -> Callable[[Any], list[tuple[str, str, str]]]:
    return operators_in


@pytest.fixture(scope="session")
def convert_bodies() -> Callable[..., Converted]:
    return bodies_converted


@pytest.fixture(scope="session")
def convert() -> Callable[..., Converted]:
    return arm_converted


@pytest.fixture(scope="session")
def picture() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 3, 16, 16)


@pytest.fixture(scope="session")
def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()


class Branches(nn.Module):
    """One of two functions, by the sign of the sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sigmoid, torch.relu, (x,))


class Layers(nn.Module):
    """A layer before a conditional and one in each of its bodies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.positive = nn.Linear(8, 8)
        self.negative = nn.Linear(8, 8)
        self.zero = nn.Buffer(torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return torch.cond(torch.sum(x) > self.zero, self.positive, self.negative, (h,))


class Interrupted(nn.Module):
    """Two layers with an operator in between that no TOSA backend takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.topk(self.first(x), 8).values)


@pytest.fixture(scope="session")
def branches() -> nn.Module:
    return Branches()


@pytest.fixture(scope="session")
def layers() -> nn.Module:
    return Layers()


@pytest.fixture(scope="session")
def interrupted() -> nn.Module:
    return Interrupted()


@pytest.fixture(scope="session")
def row() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.rand(1, 8)
