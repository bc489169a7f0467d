"""The tests of VGF need an ExecuTorch whose package has a runtime for it."""

from __future__ import annotations

import pytest

from qcore.errors import RuntimeUnavailableError
from qcore_vgf.compat.executorch import require_runtime


@pytest.fixture(scope="session", autouse=True)
def _runtime() -> None:
    try:
        require_runtime()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
