"""What the documents show runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What the fragments of a page take for granted.
PRELUDE = """
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
example_inputs = (torch.randn(1, 3, 32, 32),)
samples = [torch.randn(1, 3, 32, 32) for _ in range(4)]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "prelude"),
    [("README.md", ""), ("docs/xnnpack.md", PRELUDE)],
    ids=["README", "xnnpack"],
)
def test_the_code_of_a_page_runs_and_says_nothing_on_stderr(
    page: str, prelude: str, tmp_path: Path
) -> None:
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", prelude + "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
