"""One side of the benchmark of language models; ``language_models.py`` starts it and asks.

It reads a model, then answers requests, one JSON object a line, on stdin and stdout. It needs the
side's own runtime and numpy, so that it runs in an environment that has no more.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 512
PREFILL = 256
DECODE = 64
#: Reads tokens from a position on, and returns the logits behind the last one.
Read = Callable[[list[int], int], np.ndarray]


def executorch(path: Path, threads: int) -> Read:
    """Read with a program for ExecuTorch that has a cache, in its own runtime."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    import torch
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
    program = portable_lib._load_for_executorch(str(path))

    def read(tokens: list[int], position: int) -> np.ndarray:
        inputs = (torch.tensor([tokens]), torch.tensor([position]))
        logits: np.ndarray = program.run_method("forward", inputs)[0].reshape(-1).numpy()
        return logits

    return read


def llama_cpp(path: Path, threads: int) -> Read:
    """Read with llama.cpp."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def read(tokens: list[int], position: int) -> np.ndarray:
        model.n_tokens = position
        model.eval(tokens)
        found = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return np.ctypeslib.as_array(found, shape=(model.n_vocab(),)).copy()

    return read


def in_float(path: Path, threads: int) -> Read:
    """Read with transformers in float32, with its cache."""
    import torch
    from transformers import DynamicCache

    from qcore_llm import load_model

    torch.set_num_threads(threads)
    model, _ = load_model(path)
    cache = DynamicCache()

    def read(tokens: list[int], position: int) -> np.ndarray:
        nonlocal cache
        cache = cache if position else DynamicCache()
        with torch.no_grad():
            found = model(torch.tensor([tokens]), past_key_values=cache, logits_to_keep=1)
        logits: np.ndarray = found.logits[0, -1].numpy()
        return logits

    return read


SIDES: dict[str, Callable[[Path, int], Read]] = {
    "executorch": executorch,
    "llama.cpp": llama_cpp,
    "float": in_float,
}


def speed(read: Read, tokens: list[int]) -> dict[str, float]:
    """Return tokens per second of reading ``PREFILL`` tokens, and of ``DECODE`` one by one."""
    start = time.perf_counter()
    read(tokens[:PREFILL], 0)
    between = time.perf_counter()
    for position in range(PREFILL, PREFILL + DECODE):
        read(tokens[position : position + 1], position)
    end = time.perf_counter()
    return {"prefill": PREFILL / (between - start), "decode": DECODE / (end - between)}


def perplexity(read: Read, tokens: list[int], window: int = 256) -> float:
    """Return the perplexity of whole windows, each read token by token."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - window + 1, window):
        for position in range(window - 1):
            logits = read([tokens[start + position]], position).astype(np.float64)
            top = logits.max()
            expected = logits[tokens[start + position + 1]]
            total += top + math.log(np.exp(logits - top).sum()) - expected
            count += 1
    return math.exp(total / count)


def main() -> None:
    """Read the model, then answer until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("path", type=Path)
    parser.add_argument("tokens", type=Path, help="token numbers of the text, as a JSON list")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    answers = sys.stdout
    sys.stdout = sys.stderr
    read = SIDES[options.side](options.path, options.threads)
    tokens = json.loads(options.tokens.read_text())
    speed(read, tokens)  # The first run plans memory.
    print(json.dumps("ready"), file=answers, flush=True)
    asked: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(read, tokens),
        "perplexity": lambda: perplexity(read, tokens),
    }
    for line in sys.stdin:
        print(json.dumps(asked[json.loads(line)]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
