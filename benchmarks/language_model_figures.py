"""Figures about qcore's side of the benchmark of language models, each in a process of its own.

``language_models.py`` starts it; the last line of stdout is the figures, as JSON. Memory is that of
the process, measured anew from the step on that it belongs to, as Linux counts it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil
import torch
from language_model_files import EVALUATED, Figures
from language_model_side import CONTEXT

import qcore
import qcore_llm
from qcore.source import is_quantized
from qcore_llm.decoder import Scorer
from qcore_llm.text import documentation, token_numbers

PROMPTS: Final = (
    "What is a list in Python?",
    "Name three colours.",
    "Write a short story about a cat.",
)
ANSWER: Final = 64
#: Distance of two float32 around 1.
ULP: Final = 2.0**-23


def texts(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens that are measured, and those to calibrate on."""
    tokens = token_numbers(tokenizer, documentation())
    return tokens[:EVALUATED], tokens[EVALUATED:]


class Cost:
    """What runs in a context costs: CPU and wall time in seconds, and memory in megabytes.

    ``grown_mb`` is what was allocated at the peak beyond what was before: of the memory that the
    process has, the kernel takes back what nobody has read for long, and gives it again.
    """

    def __enter__(self) -> Cost:
        Path("/proc/self/clear_refs").write_text("5")  # Forget the peak before.
        self.before_mb = _status("VmRSS")
        self._start, self._cpu = time.perf_counter(), _cpu_seconds()
        self.grown_mb = 0.0
        self._ends = threading.Event()
        self._watch = threading.Thread(target=self._look, args=(_allocated_mb(),))
        self._watch.start()
        return self

    def _look(self, before: float) -> None:
        while not self._ends.wait(0.05):
            self.grown_mb = max(self.grown_mb, _allocated_mb() - before)

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._watch.join()
        self.wall_s = time.perf_counter() - self._start
        self.cpu_s = _cpu_seconds() - self._cpu
        self.peak_mb = _status("VmHWM")

    def figures(self) -> Figures:
        """Return them by name."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


class _Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _allocated_mb() -> float:
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return float(found.uordblks + found.hblkhd) / 1e6


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has started."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:4]) for one in (own, *own.children(recursive=True)))


def algorithm(options: argparse.Namespace) -> Figures:
    """Measure how well the model reads in eager, its weights chosen by an algorithm."""
    model, tokenizer = qcore_llm.load_model(options.model)
    unseen, seen = texts(tokenizer)
    is_gptq = options.algorithm == "gptq"
    qcore_llm.quantize(
        model,
        algorithm=options.algorithm,
        tokens=seen if is_gptq else None,
        resume=options.resume if is_gptq else None,
    )
    return {"perplexity": qcore_llm.perplexity(model, unseen)}


def gptq(options: argparse.Namespace) -> Figures:
    """Measure a run of GPTQ; nothing is resumed."""
    model, tokenizer = qcore_llm.load_model(options.model)
    _, seen = texts(tokenizer)
    block = model.model.layers[0]
    # Of each group of layers with the same inputs: the sum of x x^T, float32.
    widths = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "up": "mlp.up_proj"}
    widths["down"] = "mlp.down_proj"
    sizes = [block.get_submodule(name).in_features for name in widths.values()]
    # What is imported and set up at first use is not of the model's size.
    small = torch.nn.Sequential(torch.nn.Embedding(64, 64), torch.nn.Linear(64, 64))
    rows = [torch.arange(8)[None]]
    qcore.quantize_(small, "xnnpack", "8da4w", algorithm="gptq", calibration_data=rows)
    with torch.no_grad():
        model(seen[None, :8], use_cache=False)
    with Cost() as cost:
        report = qcore_llm.quantize(model, tokens=seen)
    return cost.figures() | {
        "layers": sum(layer.algorithm == "gptq" for layer in report.layers),
        "block_mb": sum(weight.nbytes for weight in block.parameters()) / 1e6,
        "statistics_mb": sum(4 * size * size for size in sizes) / 1e6,
    }


def lower(options: argparse.Namespace) -> Figures:
    """Measure what it takes to lower the first layers of the model, rounded."""
    model, tokenizer = qcore_llm.load_model(options.model)
    model.model.layers = model.model.layers[: options.layers]
    model.config.num_hidden_layers = options.layers
    qcore_llm.quantize(model, algorithm="round")
    with Cost() as cost:
        program = qcore_llm.lower(model, tokenizer=tokenizer, max_context=CONTEXT)
    report: Any = program.report
    return cost.figures() | {
        "delegates": report.delegates,
        "outside": len(report.undelegated),
        "seconds": dict(report.seconds),
    }


def text(options: argparse.Namespace) -> Figures:
    """Compare what the program writes with the first choices of its quantized model in eager.

    Beside it stand what the program itself chooses when it reads the prompt token by token instead
    of at once, and what the model in eager chooses when its embeddings are moved by one unit in the
    last place: nothing can be closer to the model than these are to themselves.
    """
    model, tokenizer = qcore_llm.load_model(options.model)
    _, seen = texts(tokenizer)
    qcore_llm.quantize(model, tokens=seen, resume=options.resume)
    packed, shared = _packed_bytes(model)
    program = qcore_llm.LanguageProgram.load(options.program)
    written, singly = [], []
    with program.reader() as reader:
        for prompt in PROMPTS:
            asked = program.encode([{"role": "user", "content": prompt}])
            reader.forget()
            answer = list(program.generate_tokens(asked, max_new_tokens=ANSWER, reader=reader))
            reader.forget()
            logits = [reader.read(asked), *(reader.read([token]) for token in answer[:-1])]
            written.append((asked, answer, torch.stack([row.flatten() for row in logits])))
            reader.forget()
            one_by_one = [reader.read([token]).flatten() for token in (*asked, *answer[:-1])]
            singly.append(torch.stack(one_by_one[len(asked) - 1 :]))
    program_logits = [logits for *_, logits in written]

    def eager() -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                Scorer(model)(torch.tensor([asked + answer[:-1]]))[0, len(asked) - 1 :]
                for asked, answer, _ in written
            ]

    exact = eager()
    random = torch.Generator().manual_seed(0)

    def move(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + ULP * (2 * torch.randint(0, 2, output.shape, generator=random) - 1))

    handle = model.get_input_embeddings().register_forward_hook(move)
    moved = eager()
    handle.remove()
    return {
        "program and eager": _agreement(exact, program_logits),
        "program, and the same with the prompt read one by one": _agreement(singly, program_logits),
        "eager, and the same with embeddings one ulp away": _agreement(moved, exact),
        "packed_bytes": packed,
        "head_bytes": shared,
    }


def _agreement(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> Figures:
    mine, other = torch.cat(ours), torch.cat(theirs)
    chosen = other.argmax(-1, keepdim=True)
    behind = mine.max(-1, keepdim=True).values - mine.gather(-1, chosen)
    return {
        "tokens": len(mine),
        "alike": int((behind == 0).sum()),
        "behind": float(behind.max()),
        "distance": float((mine - other).norm() / other.norm()),
    }


def _packed_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Return the size of the weights as XNNPACK keeps them, shared ones once, and of the head's."""
    found: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        size = tensor.nbytes
        if type(tensor.data) is not torch.Tensor:
            weight: Any = tensor
            is_grouped = weight.scale.numel() > len(weight)
            # Of groups scales are kept in bfloat16.
            size = weight.scale.numel() * (2 if is_grouped else 4)
            size += weight.numel() // (2 if weight.target_dtype == torch.int4 else 1)
            tensor = weight.qdata
        found[tensor.data_ptr()] = size
    head: Any = model.get_output_embeddings()
    assert is_quantized(head)
    return sum(found.values()), found[head.weight.qdata.data_ptr()]


FIGURES: Final[dict[str, Callable[[argparse.Namespace], Figures]]] = {
    "algorithm": algorithm,
    "gptq": gptq,
    "lower": lower,
    "text": text,
}


def main() -> None:
    """Measure one thing and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=FIGURES)
    parser.add_argument("model", type=Path)
    parser.add_argument("--algorithm")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(FIGURES[options.what](options)))


if __name__ == "__main__":
    main()
