"""``qcore llm``: quantize a language model, talk to its program, measure how well it reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qcore.cli.options import AsJson, Quiet, answer
from qcore.report import dump
from qcore_llm.answers import PerplexityFound, ProgramMade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcore_llm.program import LanguageProgram, Reader

__all__ = ["llm"]

llm = typer.Typer(
    help="Language models: quantize, chat, perplexity.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: Tokens at the beginning of a text that are measured; calibration takes those behind.
_MEASURED: Final = 6 * 256

Text = Annotated[
    Path | None, typer.Option(help="A text file in UTF-8; by default Python's documentation.")
]


@llm.command()
def quantize(
    model: Annotated[
        Path, typer.Argument(help="A folder that transformers loads, or a GGUF file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The program's file.")],
    backend: Annotated[str, typer.Option(help="The backend's name.")] = "xnnpack",
    scheme: Annotated[str, typer.Option(help="For the linear layers.")] = "8da4w",
    embedding: Annotated[
        str | None, typer.Option(help="For the embedding, as '4w per-group 32'.")
    ] = None,
    algorithm: Annotated[str, typer.Option(help="round, mse, gptq or hqq.")] = "gptq",
    text: Text = None,
    max_context: Annotated[
        int | None, typer.Option(help="Longest text in tokens, the size of the cache.")
    ] = None,
    max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="The most times the float model's perplexity.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A folder that keeps what gptq has done, to go on there.")
    ] = None,
    round_scales: Annotated[
        bool, typer.Option(help="Take a checkpoint's scales as the backend rounds them.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a language model; write a program with a cache and its tokenizer."""
    from qcore.cli.progress import bars, step
    from qcore.files import check_writable

    check_writable(output, "the program", "model.pte")
    import qcore_llm
    from qcore_llm.text import WINDOW, read_text, token_numbers

    written = read_text(text)
    progress = bars(quiet)
    with step("reading the model", quiet, of=str(model.resolve())):
        loaded, tokenizer = qcore_llm.load_model(model)
    tokens = token_numbers(tokenizer, written)
    unseen, seen = tokens[:_MEASURED], tokens[_MEASURED:]
    reference = None
    if max_perplexity_ratio is not None:
        with step("measuring the float model", quiet):
            length = min(WINDOW, max_context or WINDOW)
            reference = qcore_llm.perplexity(loaded, unseen, length=length, quiet=quiet)
    with step("quantizing", quiet):
        report = qcore_llm.quantize(
            loaded,
            backend,
            scheme,
            algorithm=algorithm,
            embedding=embedding,
            tokens=seen if algorithm == "gptq" else None,
            resume=resume,
            round_scales=round_scales,
            progress=progress,
        )
    with step("lowering", quiet):
        program = qcore_llm.lower(
            loaded,
            backend,
            tokenizer=tokenizer,
            max_context=max_context,
            max_perplexity_ratio=max_perplexity_ratio,
            reference=reference,
            text=unseen,
            progress=progress,
        )
    program.save(output)
    made = ProgramMade(
        str(output), output.stat().st_size, program.max_context, report, program.report
    )
    wrote = f"Wrote {output}: {len(program.buffer) / 1e6:.1f} MB, {program.max_context} tokens."
    answer(f"{report}\n{wrote}\nTalk to it: qcore llm chat {output}", dump(made), as_json, quiet)


@llm.command()
def chat(
    program: Annotated[Path, typer.Argument(help="A program, as qcore llm quantize writes it.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this and end.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn.")] = None,
) -> None:
    """Talk to a program on this machine; an empty line ends."""
    from qcore_llm import LanguageProgram

    loaded = LanguageProgram.load(program)
    tokenizer = loaded.require_tokenizer()
    if prompt is not None:
        loaded.encode(prompt)  # An empty one is an error here, and the end of a talk below.
    messages: list[dict[str, str]] = []
    read: list[int] = []
    with loaded.reader() as reader:
        while line := prompt if prompt is not None else _line():
            messages.append({"role": "user", "content": line})
            tokens = loaded.encode(messages if tokenizer.chat_template else line)
            if tokens[: len(read)] != read:
                reader.forget()
                read = []
            start = time.perf_counter()
            written = _answer(
                loaded,
                reader,
                tokens[len(read) :],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            seconds = time.perf_counter() - start
            # The last one may not have been read.
            read = [*tokens, *written][: reader.position]
            reply = tokenizer.decode(written, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": reply})
            if sys.stderr.isatty():
                typer.echo(f"[{len(written)} tokens in {seconds:.1f} s]", err=True)
            if prompt is not None:
                return


@llm.command()
def perplexity(
    model: Annotated[Path, typer.Argument(help="A program, a model's folder or a GGUF file.")],
    text: Text = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to read.")] = _MEASURED,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a program, or a float model, reads text."""
    import qcore_llm
    from qcore.cli.progress import step
    from qcore_llm.text import read_text, token_numbers

    written = read_text(text)
    loaded: Any
    if model.is_dir() or model.suffix == ".gguf":
        with step("reading the model", quiet, of=str(model.resolve())):
            loaded, tokenizer = qcore_llm.load_model(model)
    else:
        loaded = qcore_llm.LanguageProgram.load(model)
        tokenizer = loaded.require_tokenizer()
    numbers = token_numbers(tokenizer, written)[:tokens]
    found = qcore_llm.perplexity(loaded, numbers, quiet=quiet)
    text_read = f"perplexity {found:.2f} on {len(numbers)} tokens"
    answer(text_read, dump(PerplexityFound(found, len(numbers))), as_json, quiet)


def _line() -> str:
    """Return what the user writes; nothing where that ends."""
    if sys.stdin.isatty():
        typer.echo("> ", nl=False)
    return sys.stdin.readline().strip()


def _answer(program: LanguageProgram, reader: Reader, tokens: list[int], **how: Any) -> list[int]:
    """Print what the program writes, as it is written; return its tokens."""
    written: list[int] = []

    def noted() -> Iterator[int]:
        for token in program.generate_tokens(tokens, reader=reader, **how):
            written.append(token)
            yield token

    for piece in program.decoded(noted()):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
    return written
