"""What is changed of ExecuTorch's passes and partitioner for Arm while a model is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from qcore.compat import Change, Requirement, Wording
from qcore.graph import operator_name
from qcore_tosa.positions import is_argmax

__all__ = [
    "ANNOTATION",
    "CONFIGURATIONS",
    "INFO",
    "KEPT",
    "LIMITS",
    "PARTITIONER",
    "mended_passes",
    "noted_rejections",
    "untidied",
]

_EXECUTORCH: Final = (__name__, "executorch", ">=1.4.1,<1.6")
_PASSES: Final = "executorch.backends.arm._passes"
_SUPPORT: Final = "executorch.backends.arm.operator_support.tosa_supported_operators"

#: The passes that prepare a graph for annotation.
ANNOTATION: Final = Requirement(
    *_EXECUTORCH,
    f"{_PASSES}:ArmPassManager",
    ["_transform_graph_module", "add_pass", "transform_for_annotation_pipeline"],
    why="between the passes it generates the code of a graph again, and is overridden.",
)
#: The one of them that rewrites nodes that are to be kept, too.
LIMITS: Final = Requirement(
    *_EXECUTORCH,
    _PASSES,
    ["ReplaceInfAndLimitValuesPass"],
    why="it replaces infinite arguments of nodes that stay in float, which are put back.",
)
#: The partitioner of TOSA, which those of the devices inherit from.
PARTITIONER: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.arm.tosa.partitioner:TOSAPartitioner",
    ["_tag_module", "partition"],
    why="it delegates constants, and is overridden.",
)

#: The key under which a node tells the passes to leave it alone.
KEPT: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.arm.constants",
    ["DISALLOW_TFA_META_KEY"],
    why="what stays in float would be decomposed as if it were quantized.",
)
#: The key under which a node tells the partitioner that it computes in integers.
INFO: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.arm.common.annotation_meta:ArmAnnotationInfo",
    ["CUSTOM_META_KEY"],
    why="what is quantized would be left out of the delegates, or delegated in float.",
)
#: A configuration of ExecuTorch's quantizer for Arm.
CONFIGURATIONS: Final = Requirement(
    *_EXECUTORCH,
    "executorch.backends.arm.quantizer.quantization_config:QuantizationConfig",
    ["get_weight_qspec"],
    why="such a configuration is known by it, and turned into one of torchao's.",
)
# The parameters of ELU and its relatives, and the ranges of results, once the passes are at it.
_IN_METADATA: Final = tuple(
    Wording(
        *_EXECUTORCH,
        f"{_PASSES}.{owner}.call",
        keys,
        why="operators that differ in this metadata are no duplicates.",
    )
    for owner, keys in (
        (
            "convert_elu_params:ConvertELUParamsPass",
            ["float_alpha", "float_scale", "float_input_scale"],
        ),
        ("fold_qdq_with_annotated_qparams_pass:FoldAndAnnotateQParamsPass", ["output_qparams"]),
    )
)

_REPORTER: Final = Change(
    *_EXECUTORCH,
    "executorch.exir.backend.utils:WhyNoPartitionReporter",
    ["report_reject"],
    why="it gives the partitioner's reasons as a table for people, without the nodes.",
)
_CONVOLUTIONS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.rewrite_conv_pass:RewriteConvPass",
    ["_has_int32_rescale_user"],
    only="<1.5",
    why="convolutions of 16-bit activations give int32 where a reader rescales to it, which other "
    "readers do not take, and additions overflow without the saturation to 16 bits.",
)
_DUPLICATES: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.fuse_duplicate_users_pass:FuseDuplicateUsersPass",
    ["_build_user_signature"],
    why="operators that differ in their metadata alone are taken for duplicates, and of two "
    "outputs that are one value the runtime of VGF writes one.",
)
_ARGMAX: Final = Change(
    *_EXECUTORCH,
    f"{_SUPPORT}:CheckInt64InputsAndOutputs",
    ["_check_int64_input_nodes", "_is_tosa_argmax_dtype_supported"],
    why="the cast of positions to int32 stays outside of the delegate, which so promises an int64 "
    "that it does not give, and quantized argmax is refused.",
)

_TABLES: Final = Requirement(
    *_EXECUTORCH,
    f"{_PASSES}.insert_table_ops:TableOps",
    ["unary_table_ops", "special_table_ops"],
    why="it says which operators become tables.",
)
_RESULTS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.arm_pass:ArmPass",
    ["call_operator"],
    why="what becomes a table gives floats until it is one, and pooling that reads them stops.",
)
_EQUALS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.fuse_equal_placeholders_pass:FuseEqualPlaceholdersPass",
    ["_get_param_key"],
    why="Vela stops where the kernel of a convolution is what another operator reads, too.",
)
_BOUNDS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.convert_to_clamp_pass",
    ["get_clamp_params"],
    why="it reads the bounds of hardtanh, which are not there where they are the defaults.",
)
_CLAMPS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.fuse_quantized_activation_pass:FuseQuantizedActivationPass",
    ["_is_fuseable_quantized_activation"],
    why="it reads the lower bound of hardtanh, as above.",
)
_SCALES: Final = Change(
    *_EXECUTORCH,
    "executorch.backends.arm.operators.op_tosa_rescale",
    ["_compute_multiplier_and_shift"],
    why="it stops at factors beyond TOSA's, where any value but zero is clipped in any case.",
)
# A multiplier has 31 bits, and two of them are shifted out again at least.
_LARGEST_SCALE: Final = float((1 << 31) - 1) / 4
_TIDYING: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.propagate_view_copy_permute_pass:PropagateViewCopyPermutePass",
    ["call"],
    why="it only saves permutes and views, and stops at some models by itself.",
    only="<1.5",
)
_MOVES: Final = tuple(
    Change(
        *_EXECUTORCH,
        f"{_PASSES}.propagate_view_copy_permute_pass:PropagateViewCopyPermute{way}Pass",
        ["_move_node"],
        why="it moves views by the shapes of operators that it has moved others across, which it "
        "does not bring up to date.",
        only="<1.5",
    )
    for way in ("Up", "Down")
)

_CONCATENATIONS: Final = Change(
    *_EXECUTORCH,
    f"{_PASSES}.propagate_view_copy_permute_pass:PropagateViewCopyPermuteUpPass",
    ["_maybe_split_upwards_cat_fanout"],
    why="of a value that is concatenated with itself it keeps one.",
    only="<1.5",
)


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
    for requirement in _IN_METADATA:
        requirement.checked()
    keys = [key for requirement in _IN_METADATA for key in requirement.names]

    def complete(self: Any, node: Any) -> Any:
        found = signature(self, node)
        if found is None or any(user.op == "output" for user in node.users):
            return None
        return (*found, *(repr(node.meta.get(key)) for key in keys))

    def inputs_fit(self: Any, node: Any) -> bool:
        if node.kwargs.get("dtype") is torch.int32 and is_argmax(node.args[0]):
            return bool(self._is_tosa_argmax_supported(node.args[0]))
        return bool(inputs(self, node))

    def dtype_fits(self: Any, node: Any, given: Any) -> bool:
        # Without float it looks at the float32 between dequantizing and argmax.
        quantized = "dequantize_per_tensor" in operator_name(node.args[0])
        integer = quantized and self.tosa_spec.support_integer()
        return bool(integer or dtype(self, node, given))

    (call,), tables = _RESULTS.originals(), _TABLES.checked()
    become_tables = {*tables.unary_table_ops, *tables.special_table_ops}

    def quantized(
        self: Any, op: Any, args: Any, kwargs: Any, meta: Any, updated: Any = False
    ) -> Any:
        made = call(self, op, args, kwargs, meta, updated)
        ranges = meta.data.get("output_qparams") if op in become_tables else None
        if ranges and made.data.is_floating_point():
            (dtype,) = {given.dtype for given in ranges.values()}
            made.data = made.node.meta["val"] = torch.empty_like(made.data, dtype=dtype)
        return made

    (multipliers,) = _SCALES.originals()

    def limited(scales: Any, *width: Any) -> Any:
        return multipliers([min(scale, _LARGEST_SCALE) for scale in scales], *width)

    (bounds,), (fusable,) = _BOUNDS.originals(), _CLAMPS.originals()

    def with_defaults(op: Any, args: Any) -> Any:
        return bounds(op, (*args, *(-1.0, 1.0)[len(args) - 1 :]))

    def has_bounds(node: Any) -> bool:
        bounded = operator_name(node) != "aten.hardtanh.default" or len(node.args) > 1
        return bounded and bool(fusable(node))

    (identify,) = _EQUALS.originals()

    def by_use(self: Any, node: Any, *args: Any, **kwargs: Any) -> Any:
        found = identify(self, node, *args, **kwargs)
        is_kernel = any("CONV" in operator_name(u) and u.args[1] is node for u in node.users)
        return found and ((*found[0], is_kernel), found[1])

    (split,) = _CONCATENATIONS.originals()

    def split_once(self: Any, node: Any, cat: Any) -> bool:
        taken = cat.args[0] if cat.args and isinstance(cat.args[0], list | tuple) else ()
        return len(taken) == len(cat.all_input_nodes) and bool(split(self, node, cat))

    with (
        _RESULTS.applied(quantized),
        _EQUALS.applied(by_use),
        _BOUNDS.applied(with_defaults),
        _CLAMPS.applied(has_bounds),
        _SCALES.applied(limited),
        _CONCATENATIONS.applied(split_once),
        _MOVES[0].applied(_with_shapes(*_MOVES[0].originals(), up=True)),
        _MOVES[1].applied(_with_shapes(*_MOVES[1].originals(), up=False)),
        _CONVOLUTIONS.applied(lambda self, node: False),
        _DUPLICATES.applied(complete),
        _ARGMAX.applied(inputs_fit, dtype_fits),
    ):
        yield


@contextmanager
def untidied() -> Iterator[None]:
    """Lower with the permutes and views that a model has, without saving any.

    Yields:
        Nothing.
    """
    from torch.fx.passes.infra.pass_base import PassResult

    with _TIDYING.applied(lambda self, module: PassResult(module, False)):
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
