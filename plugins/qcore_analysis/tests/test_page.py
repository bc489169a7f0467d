"""The page about a quantized model: it needs no network, and it is read, filtered and sorted."""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qcore.lowering import LoweredProgram, LoweringReport
from qcore.report import AnnotationReport
from qcore_analysis.histograms import histograms_of
from qcore_analysis.making import Made
from qcore_analysis.page import write_html

#: Set where a test that finds no Chromium has to fail, as in CI.
REQUIRED = "QCORE_REQUIRE_CHROMIUM"


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


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of Chromium."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and REQUIRED in os.environ:
        pytest.fail("no Chromium is installed")
    return found or pytest.skip(f"no Chromium is installed ({REQUIRED}=1 makes this a failure)")


class Tab:
    """A page in a headless Chromium that is driven as by a user with a keyboard."""

    def __init__(self, chromium: str, file: Path, width: int, colours: str) -> None:
        profile = f"--user-data-dir={file.with_name('profile')}"
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
        theirs, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        # The protocol is spoken on the descriptors 3 and 4.
        start = f'exec "$@" 3<&{theirs} 4>&{answers} {theirs}<&- {answers}>&-'
        command = [
            "bash",
            "-c",
            start,
            "bash",
            chromium,
            *options,
            profile,
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(answers)
        self._count, self._session, self._pending = 0, {}, b""
        target = self.ask("Target.createTarget", url=file.as_uri())["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": colours}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        while self.value("location.protocol + document.readyState") != "file:complete":
            time.sleep(0.05)

    def close(self) -> None:
        os.close(self._requests)
        self._process.wait(timeout=30)
        os.close(self._answers)

    def ask(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        request = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self._pending:
                assert select.select([self._answers], [], [], 60)[0], f"no answer to {method}"
                self._pending += os.read(self._answers, 65536)
            message, _, self._pending = self._pending.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self._count:
                return answer["result"]

    def value(self, expression: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **known)

    def tab_to(self, what: str) -> None:
        """Press Tab until an expression of the focused element holds."""
        for _ in range(40):
            self.press("Tab", 9)
            if self.value(f"(element => {what})(document.activeElement)"):
                return
        pytest.fail(f"Tab does not reach {what}")


#: The least ratio of the luminances of text and page that any element has (WCAG 2.2, 1.4.3).
LEAST_CONTRAST = """
(() => {
  const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.body.querySelectorAll("*")].filter(e => e.textContent.trim());
  return Math.min(...texts.map(e => luminance(getComputedStyle(e).color))
    .map(text => (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05)));
})()
"""


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop, light", "phone, dark"])
def tab(request: pytest.FixtureRequest, chromium: str, page: str, tmp_path: Path) -> Iterator[Tab]:
    (tmp_path / "page.html").write_text(page)
    opened = Tab(chromium, tmp_path / "page.html", *request.param)
    yield opened
    opened.close()


def test_the_page_filters_and_sorts_by_keyboard_alone_and_is_no_wider_than_its_window(
    tab: Tab,
) -> None:
    shown = "document.getElementById('shown').value"
    first = "[...body.rows].find(row => !row.hidden).cells[0].textContent"
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value(LEAST_CONTRAST) >= 4.5

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


def test_a_warning_stands_above_all_else(tmp_path: Path) -> None:
    said = "There is one calibration sample."
    report = AnnotationReport("xnnpack", (), warnings=(said,))
    made = Made(LoweredProgram(b"", "xnnpack", LoweringReport("xnnpack")), report, None)
    recipe: Any = SimpleNamespace(to_toml=lambda: "")
    page = write_html(tmp_path / "page.html", "net", made, recipe, [], unseen=False)
    assert said in page.read_text(encoding="utf-8").partition("<h2>")[0]
