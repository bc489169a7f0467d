"""The format, numpy's own archive of the steps as JSON and the constants, and what executes it."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import numpy as np
import torch
from attrs import frozen

from qcore.errors import RuntimeExecutionError
from qcore.lowering import ChildProcess, Latency, Session

__all__ = ["QINT", "IntegerArtifact", "NumpyRunner", "write_program"]


def write_program(description: Mapping[str, Any], constants: Sequence[Any]) -> bytes:
    """Return the bytes of a program; equal programs give equal bytes."""
    buffer, named = io.BytesIO(), {str(i): value for i, value in enumerate(constants)}
    np.savez_compressed(buffer, program=np.array(json.dumps(description)), **named)
    return buffer.getvalue()


class IntegerArtifact:
    """Programs of this backend, as qcore reads them back."""

    suffix: Final = ".qint"

    def recognizes(self, buffer: bytes) -> bool:
        """Say whether bytes begin as a program does: a zip whose first file is the steps."""
        return buffer[:2] == b"PK" and buffer[30:41] == b"program.npy"

    def check(self, buffer: bytes, source: str) -> None:
        """Raise unless bytes are a whole program."""
        try:
            damaged = zipfile.ZipFile(io.BytesIO(buffer)).testzip()
        except zipfile.BadZipFile as error:
            damaged = str(error)
        if damaged or not self.recognizes(buffer):
            raise RuntimeExecutionError(
                f"{source} is no whole program of qcore-integer ({damaged or 'it has no steps'}). "
                "Save it again with LoweredProgram.save()."
            )

    def operators(self, buffer: bytes) -> Counter[str]:
        """Return the operators that a program computes in float."""
        steps = json.loads(str(np.load(io.BytesIO(buffer))["program"]))["steps"]
        return Counter(step["op"].rpartition(".")[0] for step in steps if not step["integer"])

    def runner(self, buffer: bytes) -> NumpyRunner:
        """Return the interpreter, which every machine has."""
        return NumpyRunner()


#: What the entry point names.
QINT: Final = IntegerArtifact()


@frozen
class NumpyRunner:
    """Executes programs in a child process that has numpy and no torch."""

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Session]:
        """Load a program in a process of its own, which answers within a minute."""
        files = {"program.npz": buffer}
        child = ChildProcess(
            "qcore_integer.interpreter", files=files, config={}, env={}, timeout_s=60
        )
        with closing(child):
            yield _Session(child)


@frozen
class _Session:
    child: ChildProcess

    def run(self, inputs: Sequence[Any], *, method: str = "forward") -> tuple[Any, ...]:
        self.benchmark(inputs, warmup=0, runs=1, method=method)
        with np.load(self.child.folder / "outputs.npz") as archive:
            return tuple(torch.from_numpy(value) for value in archive.values())

    def benchmark(
        self, inputs: Sequence[Any], *, warmup: int, runs: int, method: str = "forward"
    ) -> Latency:
        if method != "forward":
            raise RuntimeExecutionError(f"There is no method {method!r}: call forward.")
        arrays = {str(i): torch.as_tensor(x).detach().numpy() for i, x in enumerate(inputs)}
        np.savez(self.child.folder / "inputs.npz", **arrays)
        answer = self.child.ask({"op": "run", "times": warmup + runs})
        return Latency.of(answer["seconds"][warmup:])
