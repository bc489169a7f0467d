"""ExecuTorch's programs as a format: how they are recognized and what runs them."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Final

from qcore.lowering import LoweredProgram, Saved
from qcore_executorch.compat.executorch import KERNEL_CALLS
from qcore_executorch.header import FLATBUFFER_ID, check_pte
from qcore_executorch.importing import import_executorch
from qcore_executorch.runner import ExecuTorchRunner
from qcore_executorch.saved import restored

__all__ = ["PTE", "PteArtifact"]

# What the emitter adds, and what names no operator of the model.
_PRIMITIVES = ("executorch_prim::", "dim_order_ops::")


class PteArtifact:
    """ExecuTorch programs, as the core reads them back; see :class:`qcore.lowering.Artifact`."""

    suffix: ClassVar[str] = ".pte"

    def recognizes(self, buffer: bytes) -> bool:
        """Say whether bytes begin as a ``.pte`` does."""
        return buffer[4:6] == FLATBUFFER_ID

    def check(self, buffer: bytes, source: str) -> None:
        """Raise unless bytes are a whole ``.pte``."""
        check_pte(buffer, source)

    def operators(self, buffer: bytes) -> Counter[str]:
        """Return the operators that a ``.pte`` calls outside its delegates."""
        KERNEL_CALLS.checked()
        serialize: Any = import_executorch("executorch.exir._serialize._program")
        plan = serialize.deserialize_pte_binary(buffer).program.execution_plan[0]
        names = [
            plan.operators[index].name
            for chain in plan.chains
            for instruction in chain.instructions
            if (index := getattr(instruction.instr_args, "op_index", None)) is not None
        ]
        return Counter(n.replace("::", ".") for n in names if not n.startswith(_PRIMITIVES))

    def runner(self, buffer: bytes) -> ExecuTorchRunner:
        """Return ExecuTorch's own runtime."""
        return ExecuTorchRunner()

    def loaded(self, program: LoweredProgram, saved: Saved) -> LoweredProgram:
        """Give a program from a file its runner and its report."""
        return restored(program, saved)


#: The format of every program that ExecuTorch emits.
PTE: Final = PteArtifact()
