"""The page about a quantized model: it needs no network, and it is read, filtered and sorted."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from typer.testing import Result

from qcore.lowering import LoweredProgram, LoweringReport
from qcore.report import AnnotationReport
from qcore_analysis.histograms import histograms_of
from qcore_analysis.making import Made
from qcore_analysis.page import write_html
from qcore_ethosu.report import EthosUReport
from qcore_ethosu.vela import VelaFigures
from qcore_vgf.vulkan import find_device

from .browser import LEAST_CONTRAST, LOOKS, Tab


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
    graph = json.loads(program.with_name("nodes.json").read_text())["graph"]
    assert {"conv2d", "relu_1", "linear"} <= set(graph["results"])
    assert all(20 < node["value"] < 100 for node in graph["results"].values())
    assert [stop["stop"] for stop in graph["gradient"]] == [0, 1]
    model = importlib.import_module("shop").net().eval()
    exported = torch.export.export(model, (torch.rand(1, 3, 8, 8),))
    assert set(graph["results"]) <= {node.name for node in exported.graph.nodes}


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


@pytest.fixture(scope="module", params=LOOKS.values(), ids=LOOKS)
def tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    opened = Tab(tmp_path_factory.mktemp("browser"), *request.param)
    yield opened
    opened.close()


def test_the_page_is_read_in_any_window_and_colours(tab: Tab, program: Path) -> None:
    tab.open(program.with_suffix(".html").as_uri())
    assert tab.fits()
    least, where = tab.value(LEAST_CONTRAST)
    assert least >= 4.5, where
    said = "document.querySelector('#program details').innerText"
    assert "xnnpack: 1 delegate" not in tab.value(said)
    tab.tab_to("element.textContent === 'The report as text'")
    tab.press("Enter", 13, "\r")
    tab.wait_for(f"{said}.includes('xnnpack: 1 delegate')")
    assert tab.fits()
    assert tab.complaints == []


def test_the_page_filters_and_sorts_by_keyboard_alone(tab: Tab, program: Path) -> None:
    tab.open(program.with_suffix(".html").as_uri())
    shown = "document.getElementById('shown').value"
    first = "[...body.rows].find(row => !row.hidden).cells[0].textContent"

    tab.tab_to("element.id === 'find'")
    tab.ask("Input.insertText", text="conv2d")
    assert tab.value(shown) == "2 of 7"
    for _ in "conv2d":
        tab.press("Backspace", 8)
    assert tab.value(shown) == "7 of 7"

    tab.tab_to("element.id === 'show'")
    tab.press("ArrowDown", 40)
    tab.press("ArrowDown", 40)
    assert tab.value(shown) == "0 of 7", "in float"
    tab.press("ArrowUp", 38)
    assert tab.value(shown) == "7 of 7", "quantized"

    tab.tab_to("element.textContent === 'node'")
    tab.press("Enter", 13, "\r")
    assert tab.value(first) == "adaptive_avg_pool2d"
    tab.press("Enter", 13, "\r")
    assert tab.value(first) == "relu_1"
    assert tab.value("document.activeElement.parentElement.ariaSort") == "descending"


@pytest.fixture(scope="module")
def efficientnet(qcore: Callable[..., Result], folder: Path) -> Path:
    """The page about EfficientNet-Lite0; what is in it is more than how good it is."""
    (folder / "crops.py").write_text("import imagenet\nfew = imagenet.calibration_crops(2)\n")
    chosen = ("--backend", "xnnpack", "--calibration", "crops:few")
    written = ("-o", "efficientnet.pte", "--report", "efficientnet.html", "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
        done = qcore("quantize", "imagenet:float_model", *chosen, *written)
    assert done.exit_code == 0, done.output
    return folder / "efficientnet.html"


@pytest.mark.slow
def test_the_page_of_efficientnet_has_less_than_2_mb_and_opens_offline(
    tab: Tab, efficientnet: Path
) -> None:
    assert efficientnet.stat().st_size < 2e6
    tab.open(efficientnet.as_uri())
    assert tab.requested == [efficientnet.as_uri()]
    assert tab.complaints == []
    assert tab.fits()
    assert tab.value("document.getElementById('shown').value") == "160 of 160"


def page_of(report: LoweringReport, folder: Path, **annotation: Any) -> str:
    made = Made(
        LoweredProgram(b"", report.backend, report),
        AnnotationReport(report.backend, (), **annotation),
        None,
    )
    recipe: Any = SimpleNamespace(to_toml=lambda: "")
    page = write_html(folder / "page.html", "net", made, recipe, [], unseen=False)
    return page.read_text(encoding="utf-8")


def words(page: str) -> str:
    return re.sub(r"(<[^>]+>|\s)+", " ", page)


def test_what_a_compiler_says_of_each_delegate_is_told(tmp_path: Path) -> None:
    vela = VelaFigures("Ethos_U85_256", "system", "Shared", 1e9, 3, 0, 9, 7, 8, {"sram": 64}, 5, 4)
    report = EthosUReport("ethosu", delegates=2, vela=(vela, attrs.evolve(vela, npu_cycles=77)))
    text = words(page_of(report, tmp_path))
    assert "npu cycles 84 " in text, "all together"
    assert "vela 1 accelerator Ethos_U85_256, system config system, memory mode Shared" in text
    assert re.search(r"vela 2 .*npu cycles 77, total cycles 8, memory bytes sram x64, ", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("vgf", r"executed \d+\.\d dB.* delegates 1 "),
        ("ethosu --option target=ethos-u85-256", "vela 1 accelerator Ethos_U85_256, "),
    ],
)
def test_targets_of_arm_have_a_page(
    chosen: str, says: str, qcore: Callable[..., Result], tmp_path: Path
) -> None:
    if chosen == "vgf":
        find_device()
    named = ("--backend", *chosen.split(), "--calibration", "rows.npz", "--data", "shop:samples")
    page = tmp_path / "page.html"
    done = qcore("quantize", "shop:net", *named, "-o", tmp_path / "net.pte", "--report", page)
    assert done.exit_code == 0, done.output
    assert re.search(says, words(page.read_text(encoding="utf-8")))


def test_a_warning_stands_above_all_else(tmp_path: Path) -> None:
    said = "There is one calibration sample."
    page = page_of(LoweringReport("xnnpack"), tmp_path, warnings=(said,))
    assert said in page.partition("<h2>")[0]
