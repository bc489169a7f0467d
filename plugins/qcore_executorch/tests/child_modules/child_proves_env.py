"""Imported by a runner's child in tests: refuses to load without a variable."""

import os

if os.environ.get("QCORE_TEST_LAYER") != "on":
    raise ImportError("QCORE_TEST_LAYER is not on")
