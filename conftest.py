"""What holds for the tests of the core and of every plugin."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

# Set where a test that finds no Vulkan driver has to fail, as in CI.
_REQUIRED = "QCORE_REQUIRE_VULKAN"


@pytest.fixture
def quick_fusions() -> Iterator[None]:
    """Let torchao's preparation and conversion for training pass over convolutions of other kinds.

    It exports a pattern for each kind that there is, which takes 20 s.
    """
    from qcore.compat.torchao import fusions_of_present_convolutions

    with fusions_of_present_convolutions():
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests marked ``slow`` after all others; each group keeps its order."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Skip what ran into a missing Vulkan driver; pytest counts it in one line at the end.

    A test that needs one in another process asks ``qcore_vgf.vulkan.find_device`` first.
    """
    report = yield
    if report.failed and call.excinfo and _REQUIRED not in os.environ:
        reason = _without_driver(call.excinfo.value)
        if reason:
            report.outcome, report.longrepr = "skipped", (__file__, 0, reason)
    return report


def _without_driver(error: BaseException | None) -> str:
    """Say that there is no driver, if that is why a test failed."""
    from qcore.errors import RuntimeUnavailableError

    while error is not None and not isinstance(error, RuntimeUnavailableError):
        error = error.__cause__ or error.__context__
    if error is None or "Vulkan" not in str(error):
        return ""
    from qcore_vgf.vulkan import find_device

    try:
        find_device()
    except RuntimeUnavailableError as missing:
        return f"no Vulkan driver ({_REQUIRED}=1 makes this a failure): {missing}"
    return ""
