"""Lowering to ExecuTorch's Vulkan delegate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch.export.graph_signature import InputKind

from qcore.errors import LoweringError
from qcore.lowering import LoweredProgram, NoRunner, check_options, private_copy
from qcore_executorch import ExecuTorchLowering, import_executorch
from qcore_vulkan.compat.executorch import patterns_exported_once, scalars_by_type
from qcore_vulkan.graph import check_outputs, decode
from qcore_vulkan.partition import edge_passes, vulkan_partitioner

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from qcore_vulkan.report import VulkanVerification

__all__ = ["NO_RUNTIME", "VulkanLowering", "VulkanProgram", "lower_to_vulkan"]

aten = torch.ops.aten

#: ExecuTorch's Python package has no runtime for these programs.
NO_RUNTIME: Final = NoRunner(
    "ExecuTorch's Python package has no Vulkan runtime, so no program for 'vulkan' runs on this "
    "machine. Check what was delegated with program.verify(*inputs), and save the program to run "
    "it on the device."
)


@attrs.frozen(eq=False)
class VulkanProgram(LoweredProgram):
    """A model compiled for Vulkan, which can be checked here and run on a device.

    Attributes:
        quantized: The quantized model that was lowered.
        partitioned: The same after partitioning, with the nodes that no delegate took.
    """

    quantized: Any = attrs.field(default=None, repr=False)
    partitioned: Any = attrs.field(default=None, repr=False)

    def verify(self, *inputs: Any, **keywords: Any) -> VulkanVerification:
        """Check what was delegated against the quantized model.

        The Vulkan graphs inside the ``.pte`` are decoded, their weights are unpacked and compared,
        and they are executed with reference implementations of their operators. No shader runs.

        Args:
            *inputs: The model's positional arguments.
            **keywords: Its keyword arguments, where it was captured with some.

        Returns:
            What was compared, and how far the outputs differ.

        Raises:
            RuntimeExecutionError: The inputs do not fit.
            LoweringError: The program was read from a file, or holds what cannot be decoded.
        """
        from qcore_vulkan.verify import verify

        if self.partitioned is None:
            raise LoweringError(
                "A program read from a file does not hold the quantized model to compare with. "
                "Verify the program that lower() returned."
            )
        return verify(self, self.flatten(inputs, keywords))


@attrs.define
class VulkanLowering(ExecuTorchLowering):
    """ExecuTorch's lowering; keeps the quantized and the partitioned model to compare with."""

    _quantized: Any = attrs.field(default=None, init=False)
    _partitioned: Any = attrs.field(default=None, init=False)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Keep numbers of two types apart, and look for patterns without exporting them again."""
        with scalars_by_type(), patterns_exported_once():
            yield

    def rewritten(self, program: ExportedProgram) -> ExportedProgram:
        """Bring linear layers into the one form that ExecuTorch fuses."""
        _separate_weights(program)
        _store_inputs_in_order(program)
        # Packing the weights of a delegate replaces them in the program that is lowered.
        self._quantized = private_copy(program)
        return program

    def on_partitioned(self, program: ExportedProgram) -> None:
        """Keep the program with its delegates."""
        self._partitioned = private_copy(program)

    def program(self, lowered: LoweredProgram) -> VulkanProgram:
        """Check that the delegates return what the program reads, and keep what they came from."""
        check_outputs(self._partitioned, decode(lowered.buffer))
        return VulkanProgram.of(lowered, quantized=self._quantized, partitioned=self._partitioned)


def lower_to_vulkan(program: ExportedProgram, **options: Any) -> LoweredProgram:
    """Delegate to Vulkan what it takes; the rest runs on portable kernels.

    Args:
        program: The quantized model, exported.
        **options: ``check=False`` leaves out lowering again without what stops it;
            ``compile_options``, as ExecuTorch's ``VulkanPartitioner`` takes them;
            ``constant_methods``, values that the program returns from methods of these names.

    Returns:
        The program, a :class:`VulkanProgram`.

    Raises:
        LoweringError: An option is unknown, or ExecuTorch cannot lower the model.
        RuntimeUnavailableError: ExecuTorch is not installed.
    """
    check_options("vulkan", options, ("check", "compile_options", "constant_methods"))
    compile_options = options.get("compile_options") or {}
    return VulkanLowering(
        "vulkan",
        [vulkan_partitioner(compile_options)],
        NO_RUNTIME,
        edge_passes=edge_passes(bool(compile_options.get("force_fp16"))),
        constant_methods=options.get("constant_methods"),
        check=options.get("check", True),
    ).lower(program)


def _separate_weights(program: ExportedProgram) -> None:
    """Give each use of a quantized weight tensors of its own, as where a layer is called twice.

    ExecuTorch packs a weight in place for the first use, and takes the packed one for unpacked at
    the next. Equal tensors are stored once in the ``.pte``.

    Args:
        program: The program, a copy of the caller's; changed in place.
    """
    utils = import_executorch("executorch.backends.transforms.utils")
    names = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
    tensors = {**program.constants, **program.state_dict}
    uses: Counter[str] = Counter()

    def own(node: Node) -> Node:
        if node.name not in names:
            return node
        name = f"{node.name}_use{uses[stored]}"
        with program.graph.inserting_before(node):
            return utils.create_constant_placeholder(
                program, program.graph, name, InputKind.PARAMETER, tensors[names[node.name]]
            )

    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        weight = linear.args[1]
        if "dequantize" not in str(weight.target) or weight.args[0].name not in names:
            continue
        stored = names[weight.args[0].name]
        uses[stored] += 1
        read_elsewhere = any(len(tensor.users) > 1 for tensor in weight.all_input_nodes)
        if uses[stored] > 1 or read_elsewhere:
            with program.graph.inserting_before(linear):
                linear.replace_input_with(weight, program.graph.node_copy(weight, own))


def _store_inputs_in_order(program: ExportedProgram) -> None:
    """Copy the inputs of linear layers that are views in another order, as behind attention.

    Torch multiplies such an input of three dimensions batch by batch, with a copy of the weight for
    each. ExecuTorch fuses no product of batches: the layer would compute in float. Which inputs are
    such views shows only when operators are decomposed, so all are copied; of those that are stored
    in order the copies are dropped again.

    Args:
        program: The program, a copy of the caller's; changed in place.
    """
    *_, last_input = program.graph.find_nodes(op="placeholder")
    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        source = linear.args[0]
        while "quantize" in str(source.target):
            source = source.args[0]
        value = source.meta["val"]
        if value.dim() < 3 or source.target is aten.clone.default:
            continue
        with program.graph.inserting_after(last_input if source.op == "placeholder" else source):
            how = {"memory_format": torch.contiguous_format}
            stored = program.graph.call_function(aten.clone.default, (source,), how)
        stored.meta = {**source.meta, "val": value.contiguous()}
        for user in [user for user in source.users if user is not stored and user.op != "output"]:
            user.replace_input_with(source, stored)
