"""The child's side of ``qcore.lowering.process``: answer requests until the parent is done.

One JSON request a line arrives on standard input; one JSON line answers it on a descriptor of its
own. Whatever native code prints goes to the log file that the parent opened for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Operations", "Refusal", "serve"]

Operations = Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]
"""What the child does, by the request's ``op``: request in, what it adds to the answer out."""


class Refusal(Exception):
    """An answer that is an error.

    Args:
        kind: The status in the answer; the parent turns it into an exception.
        text: What was wrong.
        **facts: What else the parent's message needs.
    """

    def __init__(self, kind: str, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.answer = {"status": kind, "text": text, **facts}


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel end this process when the parent's end of a pipe closes.

    A thread that watches the pipe would not do: native code may hold the interpreter's lock for
    as long as a program runs.
    """
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action is to terminate
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def serve(arguments: Sequence[str], start: Callable[[Path, dict[str, Any]], Operations]) -> None:
    """Answer requests until standard input ends.

    Args:
        arguments: The command line's: the working folder, which holds ``config.json``; the
            descriptor to write answers to; the read end of a pipe whose other end only the parent
            holds.
        start: Prepares the operations from the folder and the configuration.
    """
    folder, answers = Path(arguments[0]), int(arguments[1])
    _die_with_parent(int(arguments[2]))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def answer(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    try:
        operations = start(folder, config)
    except Refusal as refusal:
        answer(refusal.answer)
        return
    answer({"status": "ok"})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            reply = {"status": "ok", **operations[request["op"]](request)}
        except Refusal as refusal:
            reply = refusal.answer
        sys.stderr.flush()
        answer(reply)
