"""ExecuTorch's own tests of its XNNPACK quantizer, with ours in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "upstream" / "swap_quantizer.py"


@pytest.mark.slow
def test_executorchs_own_tests_pass_but_for_the_listed_differences() -> None:
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "55 passed, 1 skipped, 1 xfailed" in done.stdout
