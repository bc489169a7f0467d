"""What can be wrong with Arm's converter and Vulkan here, for ``qcore doctor``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

from qcore.errors import RuntimeUnavailableError
from qcore_executorch.doctor import delegate_is_registered
from qcore_vgf.lowering import CONVERTER_PATH
from qcore_vgf.vulkan import find_device

__all__ = ["check"]

_INSTALL = "pip install 'executorch[vgf]>=1.4.1,<1.5'"


def check() -> Iterator[tuple[str, ...]]:
    """Yield what is wrong, and the command that mends it."""
    yield from delegate_is_registered("VgfBackend", _INSTALL)
    chosen = os.environ.get(CONVERTER_PATH)
    if chosen is not None and shutil.which(chosen) is None:
        yield f"{CONVERTER_PATH}={chosen} is no program", f"unset {CONVERTER_PATH}"
    elif chosen is None and importlib.util.find_spec("model_converter") is None:
        yield "Arm's model converter is not installed", _INSTALL
    try:
        find_device()
    except RuntimeUnavailableError as error:
        # Programs are made all the same, and the reference model executes them.
        yield str(error), "apt-get install libvulkan1 mesa-vulkan-drivers", "warning"
