"""Why a ``.pte`` does not give exactly what its converted model gives: which operators, and why.

A converted model computes in float between quantize and dequantize; XNNPACK computes in integers.
This runs the converted EfficientNet-Lite0 operator by operator beside the integer arithmetic that
XNNPACK uses, both with the same inputs, and counts the int8 results that differ. Then it runs the
whole model in that arithmetic, and compares with the ``.pte``.

Run with ``make rounding``.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.fx import GraphModule, Interpreter, Node

import qcore

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import imagenet

aten = torch.ops.aten
QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
CLAMPS = (aten.relu.default, aten.hardtanh.default)
CROPS = 8


class IntegerArithmetic(Interpreter):
    """Runs a converted model as XNNPACK does, and counts where that gives another int8 value.

    Read off XNNPACK's kernels: products are summed in int32; the bias is rounded to int32 at the
    scale of the products; the sum is scaled in float32 and rounded half to even; additions use
    fixed-point multipliers with 20 bits.
    """

    def __init__(self, model: GraphModule, *, float_bias: bool = False) -> None:
        super().__init__(model, garbage_collect_values=False)
        self.float_bias = float_bias
        self.elements: Counter[str] = Counter()
        self.differing: Counter[str] = Counter()
        self.by_bias: Counter[str] = Counter()

    def run_node(self, n: Node) -> Any:
        """Run one node in integers where it has int8 inputs and an int8 output."""
        in_float = super().run_node(n)
        output = _output_of(n)
        if output is None or str(n.args[0].target) != DEQUANTIZE:  # type: ignore[union-attr]
            return in_float
        if n.target in (aten.conv2d.default, aten.linear.default):
            steps = self._gemm(n, output, bias_in_float=self.float_bias)
            kind = _kind(n)
            other = self._rounded(self._gemm(n, output, bias_in_float=True), output)
            self.by_bias[kind] += int((other != self._rounded(steps, output)).sum())
        elif n.target is aten.add.Tensor:
            steps, kind = self._add(n, output), "add"
        elif n.target is aten.adaptive_avg_pool2d.default:
            steps, kind = self._mean(n, output), "average pool"
        else:
            return in_float
        rounded = self._rounded(steps, output)
        scale, zero_point = output
        fake = (torch.round(in_float * (1.0 / scale)) + zero_point).clamp(-128, 127)
        self.elements[kind] += rounded.numel()
        self.differing[kind] += int((fake != rounded).sum())
        return ((rounded - zero_point) * scale).float()

    def _integers(self, node: Node) -> torch.Tensor:
        return self.env[node.args[0]].double() - node.args[2]

    @staticmethod
    def _rounded(steps: torch.Tensor, output: tuple[float, int]) -> torch.Tensor:
        return (torch.round(steps) + output[1]).clamp(-128, 127)

    def _gemm(self, n: Node, output: tuple[float, int], *, bias_in_float: bool) -> torch.Tensor:
        activation, weight, bias = n.args[:3]
        in_scale = torch.tensor(activation.args[1])  # type: ignore[union-attr]
        scales = self.env[weight.args[1]].float()  # type: ignore[union-attr]
        integers = self.env[weight.args[0]].double()  # type: ignore[union-attr]
        at_scale = self.env[bias] / (scales * in_scale)
        added = at_scale.double() if bias_in_float else torch.round(at_scale).double()
        total = n.target(self._integers(activation), integers, added, *n.args[3:])
        shape = (1, -1, 1, 1) if total.dim() == 4 else (1, -1)
        return total.float() * (in_scale * scales / torch.tensor(output[0])).view(shape)

    def _add(self, n: Node, output: tuple[float, int]) -> torch.Tensor:
        ratios = [float(a.args[1]) / output[0] for a in n.args]  # type: ignore[union-attr,arg-type]
        shift = min(20 - math.floor(math.log2(max(ratios))), 31)
        first, second = (round(ratio * 2**shift) for ratio in ratios)
        a, b = (self._integers(node) for node in n.args)  # type: ignore[arg-type]
        return torch.floor((a * first + b * second + 2 ** (shift - 1)) / 2**shift)

    def _mean(self, n: Node, output: tuple[float, int]) -> torch.Tensor:
        source = n.args[0]
        assert isinstance(source, Node)
        values = self._integers(source)
        scale = torch.tensor(source.args[1]) / torch.tensor(output[0])
        area = values.shape[-1] * values.shape[-2]
        return values.sum((2, 3), keepdim=True).float() * (scale / area)


def _output_of(node: Node) -> tuple[float, int] | None:
    """Return scale and zero point of an operator's result, past the activation fused into it."""
    if node.op != "call_function" or len(node.users) != 1 or not isinstance(node.args[0], Node):
        return None
    (user,) = node.users
    if user.target in CLAMPS and len(user.users) == 1:
        (user,) = user.users
    if str(user.target) != QUANTIZE:
        return None
    return float(user.args[1]), int(user.args[2])  # type: ignore[arg-type]


def _kind(node: Node) -> str:
    if node.target is aten.linear.default:
        return "linear"
    groups = node.args[6] if len(node.args) > 6 else 1
    return "convolution" if groups == 1 else "depthwise convolution"


def main() -> None:
    """Measure and print."""
    console = Console()
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w per-channel")
    samples = imagenet.calibration_crops()
    converted = qcore.quantize(imagenet.float_model(), quantizer, samples).model
    program = quantizer.lower(converted, (samples[0],))
    crops = imagenet.evaluation_crops(CROPS)
    executed = torch.cat(program.run_many([(crop,) for crop in crops]))
    with torch.no_grad():
        expected = torch.cat([converted(crop) for crop in crops])
        integer = IntegerArithmetic(converted)
        emulated = torch.cat([integer.run(crop) for crop in crops])
        float_bias = IntegerArithmetic(converted, float_bias=True)
        without_rounded_bias = torch.cat([float_bias.run(crop) for crop in crops])
        noise = [crop + 1e-6 * torch.randn_like(crop) for crop in crops]
        disturbed = torch.cat([converted(crop) for crop in noise])

    table = Table("operator", "int8 results", "differ", "rate", "with a float bias alone")
    for kind, elements in integer.elements.items():
        differing = integer.differing[kind]
        by_bias = f"{integer.by_bias[kind]:,}"
        rate = f"{differing / elements:.1e}"
        table.add_row(kind, f"{elements:,}", f"{differing:,}", rate, by_bias)
    console.print(table)
    for label, other in (
        ("the converted model", expected),
        ("XNNPACK's integer arithmetic", emulated),
        ("the same with biases in float", without_rounded_bias),
    ):
        console.print(f".pte against {label}: {imagenet.sqnr_db(executed, other):.1f} dB")
    chaos = imagenet.sqnr_db(expected, disturbed)
    console.print(f"converted model against itself, inputs moved by 1e-6: {chaos:.1f} dB")


if __name__ == "__main__":
    main()
