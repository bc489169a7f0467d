"""Programs of language models: they hold their tokenizer, and write text."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeAlias, cast

import attrs
import torch

from qcore.errors import RuntimeExecutionError
from qcore.lowering import LoweredProgram, Runner
from qcore_llm.errors import GenerationError
from qcore_llm.text import check_tokens
from qcore_llm.tokenizer import tokenizer_data, tokenizer_from

__all__ = ["LanguageProgram", "Prompt", "Reader"]

#: Text, messages of a chat with ``role`` and ``content`` each, or token numbers.
Prompt: TypeAlias = str | Sequence[Mapping[str, str]] | Sequence[int]


class Reader:
    """Reads tokens in one process of a program, which remembers them.

    Args:
        run: The program, as ``session`` gives it.
        program: The program.
    """

    def __init__(self, run: Any, program: LanguageProgram) -> None:
        self._run = run
        self._program = program
        self.position = 0

    def read(self, tokens: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Read tokens behind those that were read before.

        Args:
            tokens: Token numbers.

        Returns:
            The logits of what comes next [vocabulary], float32.

        Raises:
            GenerationError: There are none, too many, or some that the model has not.
        """
        new = torch.as_tensor(tokens, dtype=torch.int64).reshape(1, -1)
        program = self._program
        if not new.numel():
            raise GenerationError("There is nothing to read: the prompt is empty. Pass some text.")
        if self.position + new.shape[1] > program.max_context:
            raise GenerationError(
                f"The text has {self.position + new.shape[1]} tokens, and the program's cache "
                f"holds {program.max_context}. Shorten it, or lower the model with a larger "
                "max_context."
            )
        check_tokens(new, program.vocabulary, GenerationError)
        logits: torch.Tensor = self._run(new, torch.tensor([self.position]))[0]
        self.position += new.shape[1]
        return logits

    def forget(self) -> None:
        """Begin a new text."""
        self.position = 0


@attrs.frozen(eq=False)
class LanguageProgram(LoweredProgram):
    """A language model compiled for a backend, with a cache of what it has read.

    Attributes:
        max_context: The longest text in tokens.
        vocabulary: How many tokens there are.
        ends: Token numbers that end a text.
        tokenizer: The tokenizer, as transformers has it; None where the program was made without.
        lowered: The same as the backend's own program, with what that can do beside running, such
            as Vulkan's ``verify``; None where it was read from a file.
    """

    max_context: int = 0
    vocabulary: int = 0
    ends: tuple[int, ...] = ()
    tokenizer: Any = attrs.field(default=None, repr=False)
    lowered: LoweredProgram | None = attrs.field(default=None, repr=False)

    #: The method that returns the tokenizer.
    TOKENIZER: ClassVar[str] = "qcore_tokenizer"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        runner: Runner | None = None,
    ) -> Self:
        """Read a program that was saved before, with its tokenizer.

        Args:
            path: The file.
            backend: As ``LoweredProgram.load`` takes it.
            runner: As ``LoweredProgram.load`` takes it.

        Returns:
            The program, ready to write text.

        Raises:
            RuntimeExecutionError: There is no such file, or it holds no language model.
            RuntimeUnavailableError: Nothing here runs it.
        """
        program = LoweredProgram.load(path, backend=backend, runner=runner)
        with program.session() as run:
            try:
                context = run(method="get_max_context_len")
                vocabulary = run(method="get_vocab_size")
                ends = run(method="get_eos_ids")
            except RuntimeExecutionError as error:
                raise RuntimeExecutionError(
                    f"{os.fspath(path)} holds no language model with a cache ({error}). Make one "
                    "with qcore llm quantize, or run this program with qcore run."
                ) from error
            try:
                data = run(method=cls.TOKENIZER)
            except RuntimeExecutionError:
                data = None
        return cls.of(
            program,
            max_context=context,
            vocabulary=vocabulary,
            ends=tuple(ends) if isinstance(ends, (tuple, list)) else (ends,),
            tokenizer=None if data is None else tokenizer_from(_bytes(data)),
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a text, piece by piece, in a process of its own.

        Args:
            prompt: Text, messages of a chat, or token numbers.
            max_new_tokens: The most tokens to write.
            temperature: 0 takes the likeliest token; above it they are drawn, from logits that are
                divided by it.
            seed: Seed of the drawing; None takes another each time.

        Yields:
            The text as it is written.

        Raises:
            GenerationError: The prompt is empty, or does not fit the program.
            RuntimeUnavailableError: This machine cannot run the program.
        """
        self.require_tokenizer()
        tokens = self.generate_tokens(
            self.encode(prompt), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        yield from self.decoded(tokens)

    def decoded(self, tokens: Iterable[int]) -> Iterator[str]:
        """Turn tokens into text as they come.

        Args:
            tokens: Token numbers.

        Yields:
            Pieces of text: a letter of several tokens comes with the last of them.

        Raises:
            GenerationError: The program was made without a tokenizer.
        """
        from tokenizers.decoders import DecodeStream

        tokenizer = self.require_tokenizer().backend_tokenizer
        stream = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            piece = stream.step(tokenizer, token)
            if piece:
                yield piece

    def generate_tokens(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        reader: Reader | None = None,
    ) -> Iterator[int]:
        """Continue tokens, one by one, until one ends the text or the cache is full.

        Args:
            tokens: Token numbers.
            max_new_tokens: The most tokens to write.
            temperature: As :meth:`generate`.
            seed: As :meth:`generate`.
            reader: What has read the text before; None starts a process for this text alone.

        Yields:
            Token numbers; the one that ends the text is left out.

        Raises:
            GenerationError: As :meth:`generate`.
        """
        if temperature < 0 or max_new_tokens < 1:
            raise GenerationError(
                f"temperature={temperature} and max_new_tokens={max_new_tokens}: the first is at "
                "least 0, the second at least 1."
            )
        if reader is None:
            with self.reader() as own:
                yield from self.generate_tokens(
                    tokens,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed,
                    reader=own,
                )
            return
        random = torch.Generator()
        random.seed() if seed is None else random.manual_seed(seed)
        logits = reader.read(tokens)
        for written in range(max_new_tokens):
            token = _chosen(logits, temperature, random)
            if token in self.ends:
                return
            yield token
            if written + 1 == max_new_tokens or reader.position == self.max_context:
                return
            logits = reader.read([token])

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Keep one process with the program loaded for as long as the context lasts.

        Yields:
            What reads tokens and returns logits.

        Raises:
            RuntimeUnavailableError: This machine cannot run the program.
        """
        with self.session() as run:
            yield Reader(run, self)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token numbers of a prompt.

        Args:
            prompt: Text, messages of a chat, or token numbers.

        Returns:
            The numbers.

        Raises:
            GenerationError: It is empty, or messages come to a model without a form for chats.
        """
        if not prompt:
            raise GenerationError("The prompt is empty. Pass some text.")
        if isinstance(prompt, str):
            return list(self.require_tokenizer()(prompt, verbose=False)["input_ids"])
        if isinstance(prompt[0], Mapping):
            tokenizer = self.require_tokenizer()
            if not tokenizer.chat_template:
                raise GenerationError(
                    "This model's tokenizer has no form for chats. Pass the prompt as text."
                )
            text = tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True
            )
            return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return [int(cast(int, token)) for token in prompt]

    def require_tokenizer(self) -> Any:
        """Return the tokenizer; GenerationError where there is none."""
        if self.tokenizer is None:
            raise GenerationError(
                "The program was made without a tokenizer. Lower the model with tokenizer=..., or "
                "pass token numbers to generate_tokens()."
            )
        return self.tokenizer

    @staticmethod
    def stored(tokenizer: Any) -> torch.Tensor:
        """Return a tokenizer as a program holds it: bytes [any], uint8."""
        data = zlib.compress(tokenizer_data(tokenizer), 9)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(data: torch.Tensor) -> bytes:
    return zlib.decompress(bytes(data.tolist()))


def _chosen(logits: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    if not temperature:
        return int(logits.argmax())
    shares = torch.softmax(logits.double() / temperature, -1)
    return int(torch.multinomial(shares, 1, generator=random))
