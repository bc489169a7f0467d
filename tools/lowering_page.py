"""Fills the tables of docs/lowering.md: the operators and arguments that a backend's lower gets.

``python tools/lowering_page.py`` writes them; with ``--check`` it says whether they are current.
What is asked are all models of the conformance suite.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.export import ExportedProgram

import qcore
from qcore import registry
from qcore.capture import Sample, capture
from qcore.testing import ZOO
from qcore.testing.operators import OPERATORS
from qcore.testing.packs import Pack
from qcore.testing.support import markdown_table, with_parts, write_pages
from qcore.testing.variants import VARIANTS

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "lowering.md"

sys.path.append(str(ROOT / "examples" / "qcore_integer" / "src"))
from qcore_integer.backend import IntegerBackend  # noqa: E402
from qcore_integer.shift import ShiftBackend  # noqa: E402

_STATIC: Final = "of activations with static ranges, `dtype` int8 or int16"
_AT_RUN_TIME: Final = "with what the operator above found"
_LAYERS: Final = "of `quantize_`: "

#: What quantizes, dequantizes and connects, with what it is of; all of it arrives somewhere.
MEANING: Final = {
    "quantized_decomposed.quantize_per_tensor.default": _STATIC,
    "quantized_decomposed.dequantize_per_tensor.default": (
        f"{_STATIC}; of weights with one scale, int8; of a bias in int32"
    ),
    "quantized_decomposed.dequantize_per_channel.default": (
        "of weights and of a bias in int32; `scales` and `zero_points` are placeholders"
    ),
    "quantized_decomposed.choose_qparams.tensor": "of activations with dynamic ranges",
    "quantized_decomposed.quantize_per_tensor.tensor": _AT_RUN_TIME,
    "quantized_decomposed.dequantize_per_tensor.tensor": _AT_RUN_TIME,
    "torchao.choose_qparams_affine.default": f"{_LAYERS}activations with dynamic ranges",
    "torchao.quantize_affine.default": f"{_LAYERS}{_AT_RUN_TIME}",
    "torchao.dequantize_affine.default": (
        f"{_LAYERS}activations; weights, whose scales are one for each group of `block_size`"
    ),
    "getitem": "takes a result out of several: a scale, a zero point, a part of a `cond`",
    "cond": "a conditional: the condition, two graphs, and what both take",
}


class _Received(Exception):
    """Ends a lowering once it has been looked at."""


def received(
    backend: Any, model: Any, inputs: tuple[Any, ...], scheme: str = ""
) -> ExportedProgram:
    """Return what a backend's ``lower`` is called with.

    Args:
        backend: Its class.
        model: A float model, or one that ``quantize_`` has treated.
        inputs: Its arguments.
        scheme: What it is quantized with; empty for one that is quantized.
    """
    programs = []

    def lower(self: Any, program: ExportedProgram, options: Any) -> Any:
        del self, options
        programs.append(program)
        raise _Received

    recording: Any = type(backend.__name__, (backend,), {"lower": qcore.hookimpl(lower)})
    quantizer = qcore.Quantizer(recording(), "recording")
    if scheme:
        samples = [inputs, tuple(value * 0.9 for value in inputs)]
        model = qcore.quantize(model, quantizer.set_global(scheme), samples).model
    with contextlib.suppress(_Received):
        quantizer.lower(model, inputs)
    return programs[0]


def quantized() -> Iterator[ExportedProgram]:
    """Yield programs in which every way to quantize has left its operators."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    residual, xnnpack = ZOO["residual_add"], registry.backends()["xnnpack"].load()
    for backend in (IntegerBackend, ShiftBackend):
        yield received(backend, residual.module(), residual.samples[0], "8a8w")
    yield received(xnnpack, nn.Linear(64, 8).eval(), (rows,), "8da8w")
    model = nn.Sequential(nn.Linear(64, 8)).eval()
    qcore.quantize_(model, "xnnpack", scheme="8da4w", group_size=32)
    yield received(xnnpack, model, (rows,))


def captured() -> Iterator[torch.fx.GraphModule]:
    """Yield all models of the suite: those of fixed sizes side by side, the others alone."""
    every = {**OPERATORS, **ZOO, **VARIANTS}
    alone = {n: m for n, m in every.items() if m.dynamic_shapes or n == "cond"}
    together = Pack({name: model for name, model in every.items() if name not in alone})
    yield capture(together.module(), Sample.of(together.inputs))
    for model in alone.values():
        sample = Sample.of(model.samples[0])
        yield capture(model.module(), sample, dynamic_shapes=model.dynamic_shapes)


def operators() -> dict[str, Any]:
    """Return the operators that can arrive, by name, in the order of names."""
    graphs = [program.graph_module for program in quantized()] + list(captured())
    modules = (m for g in graphs for m in g.modules() if isinstance(m, torch.fx.GraphModule))
    nodes = (node for module in modules for node in module.graph.nodes)
    targets = [node.target for node in nodes if node.op == "call_function"]
    named = {str(t) if hasattr(t, "_schema") else t.__name__: t for t in targets}
    return dict(sorted(named.items()))


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or compare them.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where the page is not current.
    """
    found = operators()
    aten = [[f"`{name}`", _arguments(op)] for name, op in found.items() if name[:5] == "aten."]
    others = {name: op for name, op in found.items() if name[:5] != "aten."}
    assert set(others) == set(MEANING), set(others) ^ set(MEANING)
    rows = [[f"`{name}`", _arguments(others[name]), MEANING[name]] for name in MEANING]
    parts = {
        "quantized": markdown_table(["operator", "arguments", ""], rows),
        "aten": markdown_table(["operator", "arguments"], aten),
    }
    return write_pages({PAGE: with_parts(PAGE, parts)}, arguments, "make support")


def _arguments(operator: Any) -> str:
    schema = str(getattr(operator, "_schema", ""))
    inside = schema[schema.find("(") + 1 : schema.rfind(") ->")]
    return f"`{inside}`" if inside else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
