"""Random models, all the way; ``make fuzz`` takes as many as there is time for."""

from __future__ import annotations

import pytest

from qcore.testing.fuzz import RandomModels

pytestmark = pytest.mark.slow


class TestConverted(RandomModels):
    backend = "tosa"
