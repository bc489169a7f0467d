"""The interpreter: numpy kernels that compute integers and floats alike; runs as a child process.

Integers are exact: layers sum them as doubles, which hold more than 50 bits, other operators in 64
bits; a result is scaled by an integer factor and a shift, rounded half to even, as torch does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from qcore.lowering.serving import Operations, serve

__all__ = ["KERNELS"]

_windows: Any = np.lib.stride_tricks.sliding_window_view


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return x @ weight.T + (0 if bias is None else bias)


def _conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Any:
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    windows = _windows(x, spans, (2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    n, _, h, w = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, groups, -1, h * w)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = (rows @ columns).reshape(n, -1, h, w)
    return y + (0 if bias is None else bias[:, None, None])


def _average(x: Any, size: Any) -> Any:
    total, count = x.sum((-2, -1), keepdims=True), x.shape[-2] * x.shape[-1]
    return total // count if x.dtype.kind == "i" else total / count


def _pad(x: Any, sizes: Any, mode: Any, value: Any = 0) -> Any:
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    return np.pad(x, widths, mode, constant_values=value or 0)


def _flatten(x: Any, start: int = 0, end: int = -1) -> Any:
    return x.reshape(*x.shape[:start], -1, *x.shape[end % x.ndim + 1 :])


def _softmax(x: Any, axis: int) -> Any:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _quantize(x: Any, scale: float, zero: int, low: int, high: int, dtype: str) -> Any:
    return np.clip(np.rint(x * np.float32(1 / scale)) + zero, low, high).astype(dtype)


def _dequantize(x: Any, scale: float, zero: int, *limits: Any) -> Any:
    return (x.astype(np.float32) - zero) * np.float32(scale)


def _dequantize_channels(x: Any, scale: Any, zero: Any, axis: int, *limits: Any) -> Any:
    shape = [-1 if index == axis else 1 for index in range(x.ndim)]
    return x * scale.astype(np.float32).reshape(shape)


#: By operator, with its positional arguments.
KERNELS: Final[Mapping[str, Callable[..., Any]]] = {
    "aten.linear.default": _linear,
    "aten.conv2d.default": _conv2d,
    "aten.adaptive_avg_pool2d.default": _average,
    "aten.add.Tensor": lambda x, y: x + y,
    "aten.mul.Tensor": lambda x, y: x * y,
    "aten.matmul.default": lambda x, y: x @ y,
    "aten.relu.default": lambda x: np.maximum(x, 0),
    "aten.relu6.default": lambda x: np.clip(x, 0, 6),
    "aten.hardtanh.default": lambda x, low=-1, high=1: np.clip(x, low, high),
    "aten.alias.default": lambda x: x,
    "aten.dropout.default": lambda x, share, training: x,
    "aten.pad.default": _pad,
    "aten.softmax.int": _softmax,
    "aten.view.default": lambda x, shape: x.reshape(shape),
    "aten.reshape.default": lambda x, shape: x.reshape(shape),
    "aten.permute.default": lambda x, order: x.transpose(order),
    "aten.transpose.int": lambda x, a, b: x.swapaxes(a, b),
    "aten.flatten.using_ints": _flatten,
    "aten.unsqueeze.default": lambda x, axis: np.expand_dims(x, axis),
    "aten.sym_size.int": lambda x, axis: x.shape[axis],
    "quantized_decomposed.quantize_per_tensor.default": _quantize,
    "quantized_decomposed.dequantize_per_tensor.default": _dequantize,
    "quantized_decomposed.dequantize_per_channel.default": _dequantize_channels,
}


def _in_integers(kernel: Callable[..., Any], args: list[Any], how: Mapping[str, Any]) -> Any:
    zeros, factors = iter(how["zeros"]), iter(how["factors"])
    for index, arg in enumerate(args):
        if isinstance(arg, np.ndarray) and arg.dtype == np.int8:
            centred = arg.astype(float if how["after"] else np.int64) - next(zeros)
            args[index] = centred if how["after"] else centred * next(factors)
    y = kernel(*args)
    y = y.astype(np.int64) * next(factors) if how["after"] else y
    half, odd = 1 << how["shift"] - 1, y >> how["shift"] & 1
    y = ((y + half - 1 + odd) >> how["shift"]) + how["zero"]
    return np.clip(y, how["low"], how["high"]).astype(np.int8)


def execute(program: Mapping[str, Any], constants: Any, inputs: list[Any]) -> list[Any]:
    """Execute a program step by step."""
    values = dict(zip(program["inputs"], inputs, strict=True))

    def decoded(arg: Any) -> Any:
        if isinstance(arg, list):
            return [decoded(item) for item in arg]
        if not isinstance(arg, dict):
            return arg
        if "value" in arg:
            return values[arg["value"]]
        if "constant" in arg:
            return constants[arg["constant"]]
        return {name: decoded(item) for name, item in arg.items()}

    for step in program["steps"]:
        kernel, args, how = KERNELS[step["op"]], decoded(step["args"]), decoded(step["integer"])
        values[step["out"]] = _in_integers(kernel, args, how) if how else kernel(*args)
    return [np.ascontiguousarray(value) for value in decoded(program["outputs"])]


def _start(folder: Path, config: dict[str, Any]) -> Operations:
    with np.load(folder / "program.npz") as archive:
        constants = dict(archive)
    program = json.loads(str(constants.pop("program")))

    def run(request: dict[str, Any]) -> dict[str, Any]:
        with np.load(folder / "inputs.npz") as given:
            inputs = list(given.values())
        seconds = []
        for _ in range(request["times"]):
            start = time.perf_counter()
            outputs = execute(program, constants, inputs)
            seconds.append(time.perf_counter() - start)
        np.savez(folder / "outputs.npz", **{str(i): value for i, value in enumerate(outputs)})
        return {"seconds": seconds}

    return {"run": run}


if __name__ == "__main__":
    serve(sys.argv[1:], _start)
