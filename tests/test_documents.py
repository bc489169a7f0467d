"""What the documents show runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What the fragments of the XNNPACK page take for granted.
PRELUDE = """
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
example_inputs = (torch.randn(1, 3, 32, 32),)
samples = [torch.randn(1, 3, 32, 32) for _ in range(4)]
"""

# torchao's own messages are not qcore's where a page imports it first.
QCORE_FIRST = "import qcore.quantizer\n"

PAGES = {
    "README.md": "",
    "docs/xnnpack.md": PRELUDE,
    "docs/vulkan.md": QCORE_FIRST,
    "docs/language-models.md": QCORE_FIRST,
    "docs/qat.md": QCORE_FIRST,
    "docs/versioning.md": QCORE_FIRST,
    "docs/tosa.md": QCORE_FIRST,
    "docs/vgf.md": QCORE_FIRST,
    "docs/ethosu.md": QCORE_FIRST,
    "docs/reports.md": QCORE_FIRST,
    "docs/extending-the-core.md": QCORE_FIRST,
    "docs/programs.md": PRELUDE,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_in_order_and_qcore_says_nothing(page: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", PAGES[page] + "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not _is_of_transformers(line)]
    assert (done.returncode, said) == (0, [])


def _is_of_transformers(line: str) -> bool:
    """Say whether transformers says it, or torchao as that imports it."""
    said = ("Loading weights:", "is an Enum subclass", "Failed to load")
    return any(part in line for part in said) or not line.strip()
