"""The site of docs/: its pages fit any window, fetch nothing from elsewhere, and are found."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .browser import LEAST_CONTRAST, LOOKS, Tab

ROOT = Path(__file__).parents[3]
PAGES = {
    "": "qcore",
    "accuracy/": "My accuracy fell",
    "reference/": "Reference",
    "support/": "What",
}

pytestmark = pytest.mark.slow


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built anew."""
    folder = tmp_path_factory.mktemp("site")
    build = (sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder)
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module", params=LOOKS.values(), ids=LOOKS)
def tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    opened = Tab(tmp_path_factory.mktemp("browser"), *request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_takes_nothing_from_elsewhere(tab: Tab, site: str, page: str) -> None:
    tab.open(site + page)
    assert tab.value("document.querySelector('h1').textContent").startswith(PAGES[page])
    assert tab.fits()
    assert tab.complaints == []
    assert [one for one in tab.requested if not one.startswith((site, "data:"))] == []
    least, where = tab.value(LEAST_CONTRAST)
    assert least >= 4.5, where


def test_the_navigation_leads_to_another_page(tab: Tab, site: str) -> None:
    tab.open(site)
    if tab.width < 600:
        tab.value("document.querySelector('label.md-header__button[for=__drawer]').click()")
    link = "document.querySelector('.md-nav--primary a[href=\"reference/\"]')"
    tab.wait_for(f"{link}.checkVisibility({{visibilityProperty: true}})")
    tab.value(f"{link}.click()")
    tab.wait_for("document.querySelector('h1').textContent.startsWith('Reference')")


def test_the_search_finds_a_page(tab: Tab, site: str) -> None:
    tab.open(site)
    tab.press("/", 191, "/")
    tab.wait_for("document.activeElement.matches('.md-search__input')")
    tab.ask("Input.insertText", text="recipes")
    found = "[...document.querySelectorAll('.md-search-result__link')]"
    tab.wait_for(f"{found}.some(link => link.href.includes('command-line/'))")
    assert tab.complaints == []
