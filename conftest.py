"""What holds for the tests of the core and of every plugin."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests marked ``slow`` after all others; each group keeps its order."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
