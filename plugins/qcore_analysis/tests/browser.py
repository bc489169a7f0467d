"""A headless Chromium that is used as by a reader with a keyboard, on a desktop or on a phone."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

#: Set where a test that finds no Chromium has to fail, as in CI.
REQUIRED = "QCORE_REQUIRE_CHROMIUM"

#: How pages are looked at: the width of the window and the colours that the reader prefers.
LOOKS = {
    f"{device}, {colours}": (width, colours)
    for device, width in (("desktop", 1280), ("phone", 390))
    for colours in ("light", "dark")
}

#: The texts with the least ratio of the luminances of text and ground (WCAG 2.2, 1.4.3 asks 4.5).
LEAST_CONTRAST = """
(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => colour.slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
  const over = (colour, ground) => {
    const alpha = colour[3] ?? 1;
    return ground.map((below, index) => alpha * colour[index] + (1 - alpha) * below);
  };
  const ground = element => element
    ? over(channels(getComputedStyle(element).backgroundColor), ground(element.parentElement))
    : [255, 255, 255];
  const ratio = element => {
    const below = ground(element);
    const both = [luminance(over(channels(getComputedStyle(element).color), below)),
                  luminance(below)];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
  const own = element => [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll("*")]
    .filter(e => own(e) && e.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .map(e => [ratio(e), `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`])
    .reduce((least, one) => one[0] < least[0] ? one : least, [21, ""]);
})()
"""


def find_chromium() -> str:
    """Return the path of Chromium, or skip the test."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and REQUIRED in os.environ:
        pytest.fail("no Chromium is installed")
    return found or pytest.skip(f"no Chromium is installed ({REQUIRED}=1 makes this a failure)")


class Refusal(Exception):
    """What Chromium answers to a request that it does not take."""


class Tab:
    """A page in a Chromium.

    Attributes:
        width: Of the window.
        requested: The addresses that the page has asked for.
        complaints: What the console has of errors.
    """

    def __init__(self, folder: Path, width: int, colours: str) -> None:
        chromium = find_chromium()
        self.width = width
        self.requested: list[str] = []
        self.complaints: list[str] = []
        profile = f"--user-data-dir={folder / 'profile'}"
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
        theirs, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        # The protocol is spoken on the descriptors 3 and 4.
        start = f'exec "$@" 3<&{theirs} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, "bash", chromium, *options, profile],
            pass_fds=(theirs, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._count, self._session, self._pending = 0, {}, b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": colours}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open a page, and wait for all that it loads."""
        self.requested.clear()
        self.complaints.clear()
        self.ask("Page.navigate", url=address)
        self.wait_for(f"location.href === {address!r} && document.readyState === 'complete'")

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
                more = os.read(self._answers, 65536)
                assert more, "Chromium has ended"
                self._pending += more
            message, _, self._pending = self._pending.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise Refusal(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, event: str | None, told: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"]["text"])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.complaints.append(str(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def value(self, expression: str) -> Any:
        """Return what an expression is; None where its page is left before it has answered."""
        try:
            answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        except Refusal as refusal:
            if "navigated" not in str(refusal):
                raise
            return None
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while self.value(expression) is not True:
            assert time.monotonic() < end, f"{expression} did not become true"
            time.sleep(0.05)

    def fits(self) -> bool:
        """Say whether the page is no wider than the window: a phone shrinks one that is."""
        wide = (
            "Math.max(document.documentElement.scrollWidth - document.documentElement.clientWidth,"
        )
        return bool(self.value(f"{wide} innerWidth - {self.width}) <= 0"))

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
