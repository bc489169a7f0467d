"""Registers ExecuTorch's kernels for attention with a cache: imported by the runtime's process.

ExecuTorch's own module for them imports torch's compiler first, which takes seconds.
"""

from __future__ import annotations

from pathlib import Path

import executorch.extension.llm.custom_ops as custom_ops
import torch
from executorch.extension.pybindings import portable_lib  # noqa: F401  # The library links to it.

__all__: list[str] = []

torch.ops.load_library(Path(custom_ops.__file__).parent / "libcustom_ops_aot_lib.so")
