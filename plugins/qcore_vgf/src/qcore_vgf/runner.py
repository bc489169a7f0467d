"""Running VGF programs on ExecuTorch's runtime over Vulkan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from qcore.lowering import Session
from qcore_executorch import ExecuTorchRunner
from qcore_vgf.vulkan import find_device, vulkan_environment

__all__ = ["VgfRunner"]


@attrs.frozen
class VgfRunner(ExecuTorchRunner):
    """Executes programs on ExecuTorch's VgfBackend, in a child process with Vulkan set up.

    The runtime takes Vulkan from its environment as it starts; this process's stays as it is.
    """

    def __str__(self) -> str:
        return str(find_device())

    @property
    def emulation(self) -> str:
        """Arm's layers where they emulate the operators: what that takes says nothing of a device.

        Raises:
            RuntimeUnavailableError: Vulkan is missing; the message says what to install.
        """
        return "Arm's ML emulation layers for Vulkan" if find_device().emulated else ""

    @contextmanager
    def session(self, buffer: bytes) -> Iterator[Session]:
        """Find a Vulkan device, start a child process and load a program in it.

        Args:
            buffer: The bytes of a ``.pte``.

        Yields:
            The session.

        Raises:
            RuntimeUnavailableError: Vulkan, the runtime or a backend is missing; the message says
                what to install.
            RuntimeExecutionError: The bytes are no complete program, or the runtime refuses it.
            RuntimeCrashError: The child died while it loaded the program.
        """
        runner = attrs.evolve(self, env={**vulkan_environment(), **self.env})
        with ExecuTorchRunner.session(runner, buffer) as session:
            yield session
