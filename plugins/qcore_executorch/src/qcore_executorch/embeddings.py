"""Quantized embeddings outside the delegates: onto ExecuTorch's own kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qcore_executorch.compat.executorch import without_edge

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["fuse_embeddings"]

_REASON: Final = "on ExecuTorch's kernel for quantized embeddings, which no delegate has"
_KERNELS: Final = "quantized_decomposed.embedding_"


def fuse_embeddings(edge: Any) -> dict[str, str]:
    """Turn embeddings of dequantized weights into ExecuTorch's quantized embedding operators.

    torchao's dequantize operator has no kernel in the runtime: left alone, it stops the emission
    with ``Missing out variants``. 4- and 2-bit weights are packed on the way.

    Args:
        edge: ExecuTorch's ``EdgeProgramManager``, after partitioning; changed in place.

    Returns:
        Why no delegate has them, by the name of the new nodes; empty where nothing changed.
    """
    reasons: dict[str, str] = {}
    for name in list(edge.methods):
        program = edge.exported_program(name)
        found = _quantized_embeddings(program)
        if found:
            _simplify(found)
            fused = edge._edge_programs[name] = _fused(program)
            nodes = (node for node in fused.graph.nodes if node.op == "call_function")
            reasons.update({n.name: _REASON for n in nodes if _name(n).startswith(_KERNELS)})
    return reasons


def _quantized_embeddings(program: ExportedProgram) -> list[Node]:
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and _name(node) == "aten.embedding.default"
        and _name(node.args[0]) == "torchao.dequantize_affine.default"
    ]


def _simplify(embeddings: list[Node]) -> None:
    """Bring embeddings into the one form that ExecuTorch's fusion knows."""
    for node in embeddings:
        weight = node.args[0]
        # The index of padding matters to gradients only.
        node.args, node.kwargs = (weight, node.args[1]), {}
        if len(weight.users) > 1:
            with node.graph.inserting_before(node):
                own = node.graph.node_copy(weight)
            node.replace_input_with(weight, own)


def _name(node: Any) -> str:
    return str(without_edge(node.target))


def _fused(program: ExportedProgram) -> ExportedProgram:
    from executorch.exir.passes.quant_fusion_pass import quant_fusion_and_const_prop_pass

    fused: ExportedProgram = quant_fusion_and_const_prop_pass(program)
    return fused
