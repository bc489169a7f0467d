"""What qcore changes of torch, for speed: no result differs; what it needs, and waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from qcore.compat.patching import Change, Requirement, Wording

__all__ = [
    "CODE_GENERATORS",
    "EXPORTED",
    "GRAD_MODE",
    "GUARDS",
    "MODULES",
    "NO_MODULE",
    "OVERLOADS",
    "PACKETS",
    "TRACING",
    "counted_names",
]

#: Held while graphs are traced or rewritten. torch overrides operators for the whole process then,
#: and keeps what it hands on from node to node in variables of modules: of two threads at it at
#: once, each would get some of the other's. Models run without it.
TRACING: Final = threading.RLock()

_TORCH: Final = (__name__, "torch", ">=2.13,<2.14")

#: A program of ``torch.export``, of which copies with other graphs and tables are made.
EXPORTED: Final = Requirement(
    *_TORCH,
    "torch.export:ExportedProgram",
    ["_update"],
    why="its constructor takes whatever a release adds to a program, and a copy must keep that.",
)
#: The packet of an operator, which its overloads are in.
PACKETS: Final = Requirement(
    *_TORCH,
    "torch._ops:OpOverload",
    ["overloadpacket"],
    why="what has none is taken for no operator.",
)
#: What an operator keeps of itself.
OVERLOADS: Final = Wording(
    *_TORCH,
    "torch._ops:OpOverload",
    ["_schema", "_overloadname", "_op"],
    why="what has no schema is taken for an operator that writes nothing.",
)
#: The structure of a graph's inputs.
CODE_GENERATORS: Final = Wording(
    *_TORCH,
    "torch.fx.graph:_PyTreeCodeGen",
    ["pytree_info"],
    why="a graph without it is taken for one with flat inputs.",
)
#: The module that checks the inputs of an exported model.
GUARDS: Final = Wording(
    *_TORCH,
    "torch.export._unlift:_unlift_exported_program_lifted_states",
    ["_guards_fn"],
    why="guards are removed by this name, and would refuse what the flow makes of a model.",
)
#: The operator that blocks without gradients become.
GRAD_MODE: Final = Requirement(
    *_TORCH,
    "torch._higher_order_ops",
    ["wrap_with_set_grad_enabled"],
    why="such blocks are inlined, without which nothing in them is quantized.",
)
#: Where nodes say which modules they are of.
MODULES: Final = Wording(
    *_TORCH,
    "torch._export.passes._node_metadata_hook:_node_metadata_hook",
    ["nn_module_stack"],
    why="rules for modules go by it, and a node without it is of none.",
)
#: What stands there for nodes that torch adds.
NO_MODULE: Final = Requirement(
    *_TORCH,
    "torch._export.passes._node_metadata_hook",
    ["_EMPTY_NN_MODULE_STACK_KEY"],
    why="it would be taken for the name of a module.",
)
_COUNTED_NAMES: Final = Change(
    *_TORCH,
    "torch.ao.quantization.fx.prepare",
    ["get_new_attr_name_with_prefix"],
    why="to name an observer it tries every number from 0, which takes most of the time for large "
    "models and grows with the square of their size.",
)


def counted_names() -> AbstractContextManager[None]:
    """Name observers by counting on."""
    counts: dict[tuple[int, str], int] = {}

    def with_prefix(prefix: str) -> Callable[[Any], str]:
        prefix = prefix.replace(".", "_")

        def new_name(owner: Any) -> str:
            key = (id(owner), prefix)
            number = counts.get(key, 0)
            while hasattr(owner, f"{prefix}{number}"):
                number += 1
            counts[key] = number
            return f"{prefix}{number}"

        return new_name

    return _COUNTED_NAMES.applied(with_prefix)
