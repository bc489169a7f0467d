"""How long the light commands take to start, beside a Python that does nothing.

Rounds alternate, so that what else the machine does falls on all alike. Needs qcore-analysis.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Final

COMMANDS: Final = (
    ("--help",),
    ("backends",),
    ("schemes", "xnnpack"),
    ("doctor", "--quick"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    started = {"python -c pass": [sys.executable, "-c", "pass"]}
    for arguments in COMMANDS:
        started[f"qcore {' '.join(arguments)}"] = [sys.executable, "-m", "qcore", *arguments]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in started}
    for _ in range(rounds + 1):  # The first finds nothing in the file system's cache.
        for name, command in started.items():
            taken[name].append(seconds(command))
    print(f"| median of {rounds} alternating rounds | seconds | of them on the CPU |")
    print("| --- | ---: | ---: |")
    for name, found in taken.items():
        wall, cpu = (statistics.median(values) for values in zip(*found[1:], strict=True))
        print(f"| `{name}` | {wall:.2f} | {cpu:.2f} |")


def seconds(command: list[str]) -> tuple[float, float]:
    """Return how long a process takes, and how long it computes: all, on an idle machine."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, process.returncode, used = os.wait4(process.pid, 0)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
