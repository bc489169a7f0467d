"""The page about a quantized model: it needs no network, and it is read, filtered and sorted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from qcore_analysis.histograms import histograms_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(program: Path) -> str:
    return program.with_suffix(".html").read_text(encoding="utf-8")


def test_the_page_takes_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?:|\bsrc=|@import|url\(", page)
    assert len(page) < 100_000


def test_the_page_has_stages_layers_coverage_program_recipe_and_grids(page: str) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    assert "8 samples, which calibration has not seen" in text
    assert re.search(r"converted +\d+\.\d dB", text)
    assert re.search(r"executed +\d+\.\d dB", text)
    assert "7 of 7" in text
    assert "conv + relu" in text
    assert "delegated ops aten.convolution.default x2" in re.sub(" +", " ", text)
    assert 'backend = "xnnpack"' in page.replace("&#34;", '"')
    assert page.count('aria-label="Histogram of the weight') == 3
    assert page.count('aria-label="Histogram of the activation') >= 4


def test_every_control_has_a_name_and_every_column_a_button(page: str) -> None:
    assert len(re.findall(r"<label>\w+ <(?:input|select)", page)) == 2
    assert page.count('<th aria-sort="none"><button') == 6
    assert page.count('tabindex="0" role="region" aria-label=') == page.count('class="scroll"')


def test_node_data_have_the_error_made_in_each_node(program: Path) -> None:
    graph = json.loads(program.with_name("nodes.json").read_text())["main"]
    assert {"conv2d", "relu_1", "linear"} <= set(graph["results"])
    assert all(20 < node["value"] < 100 for node in graph["results"].values())
    assert [stop["stop"] for stop in graph["gradient"]] == [0, 1]


def test_a_histogram_spans_the_grid_and_counts_what_is_beyond() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    ops = torch.ops.quantized_decomposed
    arguments = (0.5, 0, -128, 127, torch.int8)
    levels = graph.call_function(ops.quantize_per_tensor.default, (x, *arguments))
    graph.output(graph.call_function(ops.dequantize_per_tensor.default, (levels, *arguments)))
    model = torch.fx.GraphModule(torch.nn.Module(), graph)
    (found,) = histograms_of(model, [(torch.tensor([-64.0, 0.0, 63.5, 64.0]),)])
    assert (found.module, found.kind, found.levels, found.step) == ("x", "activation", 256, 0.5)
    assert (found.low, found.high) == (-64, 63.5)
    assert found.counts[0] == found.counts[-1] == 1
    assert found.clipped == 0.25


DRIVE = """<script>
const said = [];
find.value = "conv2d"; find.dispatchEvent(new Event("input"));
said.push(document.getElementById("shown").value);
find.value = ""; show.value = "float"; show.dispatchEvent(new Event("change"));
said.push(document.getElementById("shown").value);
const button = table.tHead.querySelector("button");
for (const _ of "12") {
  button.click();
  said.push(body.rows[0].cells[0].textContent);
}
said.push(button.parentElement.ariaSort, document.documentElement.scrollWidth <= innerWidth);
document.title = JSON.stringify(said);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_a_browser_filters_and_sorts_and_the_page_is_no_wider_than_it(
    page: str, size: str, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{DRIVE}</body>"))
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={size}")
    command = [CHROMIUM, *options, "--dump-dom", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    title: Any = re.search(r"<title>(.*?)</title>", done.stdout)
    assert json.loads(title[1]) == [
        "2 of 7",
        "0 of 7",
        "adaptive_avg_pool2d",
        "relu_1",
        "descending",
        True,
    ]
