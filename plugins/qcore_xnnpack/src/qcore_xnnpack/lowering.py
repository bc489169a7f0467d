"""Lowering to ExecuTorch's XNNPACK delegate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import torch

from qcore.graph import argument_of
from qcore.lowering import check_options
from qcore_executorch import ExecuTorchLowering, ExecuTorchRunner, import_executorch
from qcore_executorch.inspection import DELEGATION_TAG
from qcore_xnnpack.compat.executorch import ELU, SLICE, SOFTMAX, quick_passes
from qcore_xnnpack.graph_passes import prepare_for_partitioner

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from qcore.lowering import LoweredProgram

__all__ = ["XnnpackLowering", "lower_to_xnnpack"]

_OPTIONS: Final = ("check", "constant_methods", "threads", "timeout_s")


class XnnpackLowering(ExecuTorchLowering):
    """ExecuTorch's lowering with its XNNPACK partitioner."""

    def rewritten(self, program: ExportedProgram) -> ExportedProgram:
        """Apply what the partitioner needs."""
        return prepare_for_partitioner(program)

    def around(self) -> AbstractContextManager[Any]:
        """Leave out those of XNNPACK's passes that have nothing to do."""
        return quick_passes()


def lower_to_xnnpack(program: ExportedProgram, **options: Any) -> LoweredProgram:
    """Delegate to XNNPACK what it takes; the rest runs on portable kernels.

    Args:
        program: The converted model, exported.
        **options: ``check=False`` leaves out executing the program once and mending it;
            ``constant_methods``, values that the program returns from methods of these names;
            ``threads``, how many the host run uses (its default: all); ``timeout_s``, the seconds
            that one host run may take.

    Returns:
        The program.

    Raises:
        LoweringError: An option is unknown, or ExecuTorch cannot lower the model.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    check_options("xnnpack", options, _OPTIONS)
    check, constants = options.pop("check", True), options.pop("constant_methods", None)
    runner = ExecuTorchRunner(backends=("XnnpackBackend",), **options)
    return XnnpackLowering(
        "xnnpack", [_partitioner()], runner, check=check, constant_methods=constants
    ).lower(program)


def _partitioner() -> Any:
    package = "executorch.backends.xnnpack.partition"
    partition = import_executorch(f"{package}.xnnpack_partitioner")
    configs = import_executorch(f"{package}.config")

    class SafeSoftmax(SOFTMAX.checked()):  # type: ignore[misc]
        """Softmax, except of images.

        XNNPACK runs a graph with convolutions in channels-last layout, and ExecuTorch's softmax
        then normalizes over the channels, whatever dimension it is given.
        """

        def check_constraints(self, node: Node, ep: ExportedProgram) -> bool:
            is_image = node.args[0].meta["val"].dim() == 4
            if is_image and _has_convolutions(ep):
                configs.generic_node_configs.why(
                    node, reason="softmax of a 4d tensor is wrong beside convolutions"
                )
                return False
            return bool(super().check_constraints(node, ep))

    elu = ELU.checked()

    class SafeElu(elu):  # type: ignore[misc,valid-type]
        """ELU, which ExecuTorch's list leaves out, except of what it writes without its scale."""

        def check_constraints(self, node: Node, ep: ExportedProgram) -> bool:
            if len(node.args) != 2:
                configs.generic_node_configs.why(node, reason="its scale would be left out")
                return False
            return bool(super().check_constraints(node, ep))

    slices = SLICE.checked()

    class AnySlice(slices):  # type: ignore[misc,valid-type]
        """Slices, also of tensors with sizes that vary, along a dimension that does not."""

        def check_constraints(self, node: Node, ep: ExportedProgram) -> bool:
            given, left = node.args[0].meta["val"].shape, node.meta["val"].shape
            dim = argument_of(node, "dim", 0) % len(given)
            sizes = [size for size in (*given, *left) if isinstance(size, int)]
            if len(sizes) == len(given) + len(left):
                return bool(super().check_constraints(node, ep))
            is_fixed = isinstance(given[dim], int) and isinstance(left[dim], int)
            is_taken = is_fixed and 0 not in sizes and argument_of(node, "step", 1) == 1
            return is_taken and bool(self.check_common_constraints(node, ep))

    replaced = {configs.SoftmaxConfig: SafeSoftmax, elu: SafeElu, slices: AnySlice}
    listed = dict.fromkeys((*configs.ALL_PARTITIONER_CONFIGS, elu))
    chosen = [replaced.get(config, config) for config in listed]

    class Partitioner(partition.XnnpackPartitioner):  # type: ignore[misc,name-defined]
        """Hands constant scalars to the delegates, which get them as inputs otherwise."""

        def partition(self, exported_program: ExportedProgram) -> Any:
            result = super().partition(exported_program)
            _own_scalars(result.tagged_exported_program)
            return result

    return Partitioner(configs=chosen)


def _own_scalars(program: ExportedProgram) -> None:
    """Let each delegate hold the quantized constant scalars that it alone reads.

    XNNPACK makes a table of operators that follow each other in int8. It takes the first input of a
    delegate for a part of what it tabulates, and dies where that is read in between.
    """
    written = set(program.graph_signature.buffers_to_mutate.values())
    held = program.graph_signature.inputs_to_buffers
    for node in program.graph.find_nodes(op="placeholder"):
        tags = {user.meta.get(DELEGATION_TAG) for user in node.users}
        value = node.meta.get("val")
        is_fixed = node.name in held and held[node.name] not in written
        is_scalar = is_fixed and value.dtype is torch.int8 and value.numel() == 1
        if is_scalar and len(tags) == 1 and None not in tags:
            node.meta[DELEGATION_TAG] = tags.pop()


def _has_convolutions(program: ExportedProgram) -> bool:
    return any("convolution" in str(node.target) for node in program.graph.nodes)
