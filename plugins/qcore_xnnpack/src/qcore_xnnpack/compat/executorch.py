"""What is overridden of ExecuTorch's XNNPACK partitioner, and changed of its passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from qcore.compat import Change, Requirement

__all__ = ["ELU", "SLICE", "SOFTMAX", "quick_passes"]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.6")

#: Its rules for softmax.
SOFTMAX: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.xnnpack.partition.config:SoftmaxConfig",
    ["check_constraints"],
    why="it delegates the softmax of images beside convolutions, which XNNPACK computes over the "
    "channels.",
)

#: Its rules for ELU.
ELU: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.xnnpack.partition.config.generic_node_configs:EluConfig",
    ["check_constraints"],
    why="its list of what it delegates leaves out ELU, and what it writes has no scale.",
)

#: Its rules for slices.
SLICE: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.xnnpack.partition.config:SliceCopyConfig",
    ["check_constraints", "check_common_constraints"],
    why="it leaves out tensors with a size that varies; XNNPACK cuts the bounds to what there is.",
)

_PASSES: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.xnnpack._passes:XNNPACKPassManager",
    ["transform"],
    why="each of its passes interprets the whole delegate again, where it matches nothing, too.",
)

_COPIES: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass:"
    "ChannelsLastTaggedReshapePass",
    ["insert_copy_q_dq"],
    why="where one reader of a quantized value needs another memory format, all others get that "
    "format as well, and read it as if it were theirs: wrong results, or 'KeyError: val'.",
)

#: A part of the name of the operators that a pass is for; without them it changes nothing.
_FOR: Final = {
    "DimOrderOpsRevertPass": ("dim_order",),
    "ConvertToUpsampleBilinear2d": ("index",),
    "ConvertToSDPAPass": ("softmax",),
    "FuseBatchNormPass": ("batch_norm",),
    "DecomposeBatchNorm": ("batch_norm",),
    "FuseActivationPass": ("relu", "hardtanh", "clamp"),
    "DecomposeConcatenate": ("cat",),
    "InsertPadQDQPass": ("pad",),
    "Conv1dUnsqueezePass": ("convolution", "batch_norm"),
    "PReLUReshapePass": ("prelu",),
}


_SPARED: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.xnnpack._passes",
    list(_FOR),
    why="a pass that is known by none of these names runs where nothing is for it, too.",
)


@contextmanager
def quick_passes() -> Iterator[None]:
    """Let XNNPACK's passes run on a delegate only if an operator that they are for is in it.

    A copy in another memory format is for the one reader that needs it.

    Yields:
        Nothing.
    """
    _SPARED.checked()
    (original,), (insert,) = _PASSES.originals(), _COPIES.originals()

    def transform(self: Any) -> Any:
        nodes = self.exported_program.graph.nodes
        operators = " ".join({str(n.target) for n in nodes if n.op == "call_function"})
        self.passes = [
            each
            for each in self.passes
            if any(name in operators for name in _FOR.get(each.__name__, ("",)))
        ]
        return original(self)

    def insert_copy_q_dq(
        self: Any, graph_module: Any, before: Any, after: Any, copy: Any, parameters: Any
    ) -> None:
        if len(before.users) > 2:
            with graph_module.graph.inserting_after(before):
                own = graph_module.graph.node_copy(before)
            for user in (after, copy):
                user.replace_input_with(before, own)
            before = own
        insert(self, graph_module, before, after, copy, parameters)

    with _PASSES.applied(transform), _COPIES.applied(insert_copy_q_dq):
        yield
