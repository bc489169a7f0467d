"""The demo for Vulkan, on the first of the encoder's layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "encode_sentences.py"


@pytest.mark.slow
def test_the_demo_verifies_the_program_and_says_that_it_was_not_run() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--layers", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stages = done.stderr.splitlines()
    assert [line for line in stages if not re.fullmatch(r"[A-Z][\w ,:]+: \d+\.\d s", line)] == []
    assert "6 of 6 quantized weights are in the program, exactly" in done.stdout
    assert "vulkan: verified" in done.stdout
    assert "Not run: ExecuTorch's Python package has no Vulkan runtime" in done.stdout
