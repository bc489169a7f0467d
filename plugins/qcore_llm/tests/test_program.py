"""Programs of language models: what they write, remember, hold and refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qcore
import qcore_llm
from qcore.errors import RuntimeExecutionError, RuntimeUnavailableError
from qcore.source import quantized_weight
from qcore_llm import GenerationError, LanguageModelError, LanguageProgram, PerplexityError
from qcore_llm.decoder import Scorer

CONTEXT = 48


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(Scorer(model)(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[-count:]


def test_a_program_writes_what_the_quantized_model_writes(
    program: LanguageProgram, quantized_llama: Any
) -> None:
    prompt = [5, 17, 200, 31]
    written = list(program.generate_tokens(prompt, max_new_tokens=12))
    expected = greedy(quantized_llama, prompt, 12)
    assert written == expected[: expected.index(0) if 0 in expected else None]


def test_activations_are_rounded_to_the_integers_that_eager_rounds_them_to() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    unit = quantized_weight(torch.eye(64).to(torch.int8), torch.ones(64, 1), 8)
    model[0].weight = torch.nn.Parameter(unit, requires_grad=False)
    qcore.quantize_(model, "xnnpack", "8da8w")
    torch.manual_seed(0)
    rows = torch.randn(1024, 64)
    rows[256:512] = rows[256:512] ** 3
    rows[512:768] = rows[512:768].abs()
    rows[768:, 0] = 100
    program = qcore.get_quantizer("xnnpack").lower(model, (rows,))
    step = (rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)) / 255
    assert ((program.run(rows) - model(rows)).abs().amax(1) / step).max() < 0.01


def test_there_is_one_delegate_between_two_attentions(program: LanguageProgram) -> None:
    operators = [node.operator for node in program.report.undelegated]
    assert operators.count("llama.custom_sdpa.default") == 2
    assert program.report.delegates <= 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", ["4w", "8da4w"])
def test_a_program_with_a_cache_is_verified_on_vulkan(small_llama: Any, scheme: str) -> None:
    model = small_llama()
    qcore_llm.quantize(model, "vulkan", scheme, algorithm="round")
    program = qcore_llm.lower(model, "vulkan", max_context=CONTEXT)
    assert program.lowered is not None
    for tokens, position in (([[5, 17, 200]], 0), ([[31]], 3)):
        inputs = torch.tensor(tokens), torch.tensor([position])
        found = program.lowered.verify(*inputs)  # type: ignore[attr-defined]
        assert found.ok
        assert len(found.weights) == 15
    with pytest.raises(RuntimeUnavailableError, match="no Vulkan runtime"):
        list(program.generate_tokens([5], max_new_tokens=1))


def test_a_saved_program_writes_the_same_text(program: LanguageProgram, saved: Path) -> None:
    loaded = LanguageProgram.load(saved)
    assert loaded.max_context == CONTEXT
    chat = [{"role": "user", "content": "def"}]
    text = "".join(loaded.generate(chat, max_new_tokens=6))
    assert text == "".join(program.generate(chat, max_new_tokens=6))
    assert text


def test_drawing_repeats_with_a_seed_and_differs_without(program: LanguageProgram) -> None:
    def drawn(seed: int) -> list[int]:
        tokens = program.generate_tokens([1], max_new_tokens=8, temperature=2.0, seed=seed)
        return list(tokens)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_text_ends_where_the_cache_does(program: LanguageProgram) -> None:
    prompt = [3] * (CONTEXT - 2)
    with program.reader() as reader:
        written = list(program.generate_tokens(prompt, max_new_tokens=9, reader=reader))
        assert reader.position == CONTEXT or len(written) < 3
    assert len(written) <= 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "The prompt is empty"),
        ([], "The prompt is empty"),
        ([3] * (CONTEXT + 1), f"cache holds {CONTEXT}"),
        ([320], "Token numbers are 0 to 319"),
        ([-1], "there is -1"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(
    program: LanguageProgram, prompt: Any, message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        list(program.generate(prompt))


def test_a_program_of_another_kind_is_no_language_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    sample = (torch.randn(1, 8),)
    quantizer = qcore.get_quantizer("xnnpack").set_global("8a8w")
    quantized = qcore.quantize(model, quantizer, [sample])
    path = quantizer.lower(quantized, sample).save(tmp_path / "linear.pte")
    with pytest.raises(RuntimeExecutionError, match="holds no language model"):
        LanguageProgram.load(path)


def test_perplexity_of_a_program_is_that_of_the_quantized_model(
    program: LanguageProgram, quantized_llama: Any
) -> None:
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(1))
    executed = qcore_llm.perplexity(program, tokens, length=20)
    eager = qcore_llm.perplexity(quantized_llama, tokens, length=20)
    assert executed == pytest.approx(eager, rel=1e-2)


def test_a_text_shorter_than_a_window_is_refused(quantized_llama: Any) -> None:
    with pytest.raises(PerplexityError, match="has 3 tokens"):
        qcore_llm.perplexity(quantized_llama, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("wrong", [320, -1])
def test_a_text_of_tokens_that_the_model_has_not_is_refused(
    small_llama: Any, program: LanguageProgram, wrong: int
) -> None:
    model, tokens = small_llama(), torch.tensor([3] * 255 + [wrong])
    for reads in (model, program):
        with pytest.raises(GenerationError, match=f"there is {wrong}"):
            qcore_llm.perplexity(reads, tokens)
    with pytest.raises(LanguageModelError, match=f"there is {wrong}"):
        qcore_llm.quantize(model, tokens=tokens)


def test_a_ratio_without_a_reference_is_refused(quantized_llama: Any) -> None:
    with pytest.raises(PerplexityError, match="reference="):
        qcore_llm.lower(quantized_llama, max_context=CONTEXT, max_perplexity_ratio=1.1)


@pytest.fixture(scope="module")
def seen(float_llama: Any) -> torch.Tensor:
    """Two windows of what the float model itself writes: it is sure of that."""
    rows = [greedy(float_llama, [token], CONTEXT) for token in (5, 17)]
    return torch.tensor(rows).flatten()


def test_lower_returns_a_program_that_reads_well_enough(
    float_llama: Any, quantized_llama: Any, seen: torch.Tensor
) -> None:
    how: dict[str, Any] = {"max_context": CONTEXT, "check": False, "max_perplexity_ratio": 1.1}
    program = qcore_llm.lower(quantized_llama, reference=float_llama, text=seen, **how)
    found = qcore_llm.perplexity(program, seen)
    assert found <= 1.1 * qcore_llm.perplexity(float_llama, seen, length=CONTEXT)


def test_lower_refuses_a_program_that_reads_badly(
    float_llama: Any, small_llama: Any, seen: torch.Tensor
) -> None:
    damaged = small_llama()
    with torch.no_grad():
        damaged.model.layers[1].mlp.down_proj.weight.mul_(30)
    qcore_llm.quantize(damaged, algorithm="mse")
    how: dict[str, Any] = {"max_context": CONTEXT, "check": False, "max_perplexity_ratio": 1.1}
    with pytest.raises(PerplexityError, match=r"times the float model's .*; 1\.1 was asked for"):
        qcore_llm.lower(damaged, reference=float_llama, text=seen, **how)


THEIRS = """
import sys
import executorch.kernels.quantized
import torch
from executorch.extension.llm import custom_ops
from executorch.extension.pybindings import portable_lib

torch.ops.load_library(custom_ops.__path__[0] + "/libcustom_ops_aot_lib.so")
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

how = GenerationConfig(max_new_tokens=5, temperature=0.0, echo=False, seq_len=20)
pieces = []
TextLLMRunner(*sys.argv[1:3]).generate("def", how, pieces.append)
print("\\nTHEIRS:" + "".join(pieces))
"""


@pytest.mark.slow
def test_executorchs_own_runner_reads_the_file(
    program: LanguageProgram, saved: Path, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-c", THEIRS, str(saved), str(tmp_path / "tokenizer.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = done.stdout.partition("THEIRS:")[2].splitlines()[0]
    ours = "".join(program.generate("def", max_new_tokens=5))
    assert theirs.startswith(ours)
    assert len(ours) > 2
