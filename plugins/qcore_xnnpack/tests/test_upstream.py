"""ExecuTorch's own tests of its XNNPACK quantizer, with ours in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "upstream" / "swap_quantizer.py"


# Each part takes as long as the other, and both can be run at once.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "outcome"),
    [
        ("*test_[rx]*.py", "19 passed"),
        ("*test_pt2e_quantization.py", "36 passed, 1 skipped, 1 xfailed"),
    ],
    ids=["flow", "quantizer and representation"],
)
def test_executorchs_own_tests_pass_but_for_the_listed_differences(
    left_out: str, outcome: str
) -> None:
    command = [sys.executable, str(SCRIPT), f"--ignore-glob={left_out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert outcome in done.stdout
