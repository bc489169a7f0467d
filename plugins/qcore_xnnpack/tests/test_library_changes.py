"""What is overridden of ExecuTorch's XNNPACK partitioner is there."""

from __future__ import annotations

from qcore.testing.compat import LibraryChanges


class TestChanges(LibraryChanges):
    package = "qcore_xnnpack"
