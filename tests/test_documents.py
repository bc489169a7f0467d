"""What the documents show runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qcore_vgf.vulkan import find_device

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
    "docs/tosa.md": QCORE_FIRST,
    "docs/vgf.md": QCORE_FIRST,
    "docs/ethosu.md": QCORE_FIRST,
    "docs/programs.md": PRELUDE,
}

# Its other fragment is for Lightning, which says things of its own.
TRAINING = "docs/qat.md"

# What that fragment takes for granted, after the rest of its page.
BEFORE_LIGHTNING = """
import sys
print("Lightning", file=sys.stderr)
import lightning
from torch.nn.functional import cross_entropy
from torchao.quantization.pt2e import allow_exported_model_train_eval
graph = torch.export.export(model.train(), (batches[0][0],)).module()
training_batches = validation_batches = torch.utils.data.DataLoader(batches, batch_size=None)
example_inputs = (batches[0][0],)
"""

# Pages whose code is fragments of hooks, or run by tests of their own.
RUN_ELSEWHERE = {
    "docs/command-line.md",
    "docs/hooks.md",
    "docs/writing-a-backend.md",
    "docs/writing-a-compiler.md",
}

# Pages whose code is quick: one process runs them all, for importing torch takes longer.
TOGETHER = (
    "docs/continuous-integration.md",
    "docs/extending-the-core.md",
    "docs/from-executorch.md",
    "docs/index.md",
    "docs/reports.md",
    "docs/selection.md",
    "docs/versioning.md",
)


def code_of(page: str) -> str:
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    return "\n".join(blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_in_order_and_qcore_says_nothing(page: str, tmp_path: Path) -> None:
    if page == "docs/vgf.md":
        find_device()
    assert run(PAGES[page] + code_of(page), tmp_path) == (0, [])


@pytest.mark.slow
def test_the_code_of_quick_pages_runs_and_qcore_says_nothing(tmp_path: Path) -> None:
    calls = [f"exec(compile({code_of(page)!r}, {page!r}, 'exec'), {{}})" for page in TOGETHER]
    assert run(QCORE_FIRST + "\n".join(calls), tmp_path) == (0, [])


@pytest.mark.slow
def test_the_code_of_the_page_about_training_runs_and_then_that_for_lightning(
    tmp_path: Path,
) -> None:
    page = (ROOT / TRAINING).read_text(encoding="utf-8")
    (fragment,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    told = "assert program.report.delegates"
    status, said = run(
        "\n".join((QCORE_FIRST, code_of(TRAINING), BEFORE_LIGHTNING, fragment, told)), tmp_path
    )
    assert status == 0, "\n".join(said)
    assert said[0] == "Lightning"


def test_every_page_with_code_is_run() -> None:
    with_code = {
        str(page.relative_to(ROOT))
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        if BLOCK.search(page.read_text(encoding="utf-8"))
    }
    assert with_code - RUN_ELSEWHERE == {*PAGES, *TOGETHER, TRAINING}


def run(code: str, folder: Path) -> tuple[int, list[str]]:
    """Run code in a process of its own; return its status and what it says of errors."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not _is_of_transformers(line)]
    return done.returncode, said


def _is_of_transformers(line: str) -> bool:
    """Say whether transformers says it, or torchao as that imports it."""
    said = ("Loading weights:", "is an Enum subclass", "Failed to load")
    return any(part in line for part in said) or not line.strip()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_for_newcomers() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
