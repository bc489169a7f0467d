"""What is changed of ExecuTorch's passes and partitioner for Arm while a model is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from qcore.compat import Change, Requirement
from qcore.graph import operator_name
from qcore_executorch.compat.torch import deferred_code
from qcore_tosa.marks import is_argmax

__all__ = ["ANNOTATION", "LIMITS", "PARTITIONER", "mended_passes", "noted_rejections"]

_VERSIONS: Final = ">=1.4.1,<1.6"
_PASSES: Final = "executorch.backends.arm._passes"
_SUPPORT: Final = "executorch.backends.arm.operator_support.tosa_supported_operators"

#: The passes that prepare a graph for annotation.
ANNOTATION: Final = Requirement(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_PASSES}:ArmPassManager",
    ["_transform_graph_module", "add_pass", "transform_for_annotation_pipeline"],
    why="between the passes it generates the code of a graph again, and is overridden.",
)
#: The one of them that rewrites nodes that are to be kept, too.
LIMITS: Final = Requirement(
    __name__,
    "executorch",
    _VERSIONS,
    _PASSES,
    ["ReplaceInfAndLimitValuesPass"],
    why="it replaces infinite arguments of nodes that stay in float, which are put back.",
)
#: The partitioner of TOSA, which those of the devices inherit from.
PARTITIONER: Final = Requirement(
    __name__,
    "executorch",
    _VERSIONS,
    "executorch.backends.arm.tosa.partitioner:TOSAPartitioner",
    ["_tag_module", "partition"],
    why="it delegates constants, and is overridden.",
)

_REPORTER: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    "executorch.exir.backend.utils:WhyNoPartitionReporter",
    ["report_reject"],
    why="it gives the partitioner's reasons as a table for people, without the nodes.",
)
_CONVOLUTIONS: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_PASSES}.rewrite_conv_pass:RewriteConvPass",
    ["_has_int32_rescale_user"],
    only="<1.5",
    why="convolutions of 16-bit activations give int32 where a reader rescales to it, which other "
    "readers do not take, and additions overflow without the saturation to 16 bits.",
)
_DUPLICATES: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_PASSES}.fuse_duplicate_users_pass:FuseDuplicateUsersPass",
    ["_build_user_signature"],
    why="operators that differ in their metadata alone are taken for duplicates, and of two "
    "outputs that are one value the runtime of VGF writes one.",
)
_ARGMAX: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_SUPPORT}:CheckInt64InputsAndOutputs",
    ["_check_int64_input_nodes", "_is_tosa_argmax_dtype_supported"],
    why="the cast of positions to int32 stays outside of the delegate, which so promises an int64 "
    "that it does not give, and quantized argmax is refused.",
)

_CASTING: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_PASSES}.decorate_fp32_to_int32_casting_pass:DecorateFp32toInt32CastingPass",
    ["call_operator"],
    why="it takes integers for floats where a view stands between them and what gave them, and "
    "rounds them with operators that take floats alone.",
)

_PIPELINE: Final = Change(
    __name__,
    "executorch",
    _VERSIONS,
    f"{_PASSES}:ArmPassManager",
    ["transform_to_backend_pipeline"],
    why="after each of a hundred passes it generates the code of a graph again.",
)
_MOVES: Final = tuple(
    Change(
        __name__,
        "executorch",
        _VERSIONS,
        f"{_PASSES}.propagate_view_copy_permute_pass:PropagateViewCopyPermute{way}Pass",
        ["_move_node"],
        why="it moves views by the shapes of operators that it has moved others across, which it "
        "does not bring up to date.",
    )
    for way in ("Up", "Down")
)

# The parameters of ELU and its relatives, and the ranges of results, once the passes are at it.
_IN_METADATA: Final = ("float_alpha", "float_scale", "float_input_scale", "output_qparams")


def _is_integer(node: Any) -> bool:
    """Say whether a value is one of integers, whatever type it has before the last passes."""
    while not node.meta.get("output_qparams"):
        if "view_copy" not in str(node.target) and "permute_copy" not in str(node.target):
            return False
        (node,) = node.all_input_nodes
    return True


def _with_shapes(move: Any, *, up: bool) -> Any:
    """Let a pass that moves a node across others give these the shapes that they have then."""

    def moved(self: Any, node: Any, frontier: Any, previous: Any) -> None:
        crossed: list[Any] = []
        last = frontier if frontier.op == "call_function" else previous
        while (crossed[-1] if crossed else node) is not last:
            ends = crossed[-1] if crossed else node
            crossed += [ends.all_input_nodes[0]] if up else list(ends.users)
        move(self, node, frontier, previous)
        for one in [node, *reversed(crossed)] if up else crossed:
            args, kwargs = torch.fx.map_arg((one.args, one.kwargs), lambda n: n.meta["val"])
            with one.meta["val"].fake_mode:
                one.meta["val"] = one.target(*args, **kwargs)

    return moved


@contextmanager
def mended_passes() -> Iterator[None]:
    """Lower with ExecuTorch's passes as they are meant.

    Yields:
        Nothing.
    """
    (signature,) = _DUPLICATES.originals()
    inputs, dtype = _ARGMAX.originals()

    def complete(self: Any, node: Any) -> Any:
        found = signature(self, node)
        if found is None or any(user.op == "output" for user in node.users):
            return None
        return (*found, *(repr(node.meta.get(key)) for key in _IN_METADATA))

    def inputs_fit(self: Any, node: Any) -> bool:
        if node.kwargs.get("dtype") is torch.int32 and is_argmax(node.args[0]):
            return bool(self._is_tosa_argmax_supported(node.args[0]))
        return bool(inputs(self, node))

    def dtype_fits(self: Any, node: Any, given: Any) -> bool:
        # Without float it looks at the float32 between dequantizing and argmax.
        quantized = "dequantize_per_tensor" in operator_name(node.args[0])
        integer = quantized and self.tosa_spec.support_integer()
        return bool(integer or dtype(self, node, given))

    (decorated,), (transform,) = _CASTING.originals(), _PIPELINE.originals()

    def cast(self: Any, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        if op in self.target_ops and _is_integer(args[0].node):
            return super(type(self), self).call_operator(op, args, kwargs, meta)
        return decorated(self, op, args, kwargs, meta)

    def transformed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with deferred_code():
            result = transform(self, *args, **kwargs)
        result.recompile()
        return result

    with (
        _PIPELINE.applied(transformed),
        _MOVES[0].applied(_with_shapes(*_MOVES[0].originals(), up=True)),
        _MOVES[1].applied(_with_shapes(*_MOVES[1].originals(), up=False)),
        _CASTING.applied(cast),
        _CONVOLUTIONS.applied(lambda self, node: False),
        _DUPLICATES.applied(complete),
        _ARGMAX.applied(inputs_fit, dtype_fits),
    ):
        yield


@contextmanager
def noted_rejections() -> Iterator[dict[Any, str]]:
    """Note what the partitioner does not take.

    Yields:
        The reasons by node, filled while the context lasts.
    """
    found: dict[Any, str] = {}
    (report,) = _REPORTER.originals()

    def report_reject(self: Any, node: Any, reason: str) -> None:
        found.setdefault(node, reason)
        report(self, node, reason)

    with _REPORTER.applied(report_reject):
        yield found
