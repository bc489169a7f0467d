"""Quantized embeddings outside the delegates: onto ExecuTorch's own kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
        if _has_quantized_embedding(program):
            fused = edge._edge_programs[name] = _fused(program)
            nodes = (node for node in fused.graph.nodes if node.op == "call_function")
            reasons.update({n.name: _REASON for n in nodes if _name(n).startswith(_KERNELS)})
    return reasons


def _has_quantized_embedding(program: ExportedProgram) -> bool:
    return any(
        node.op == "call_function"
        and _name(node) == "torchao.dequantize_affine.default"
        and any("aten.embedding" in _name(user) for user in node.users)
        for node in program.graph.nodes
    )


def _name(node: Any) -> str:
    return str(getattr(node.target, "_op", node.target))


def _fused(program: ExportedProgram) -> ExportedProgram:
    from executorch.exir.passes.quant_fusion_pass import quant_fusion_and_const_prop_pass

    fused: ExportedProgram = quant_fusion_and_const_prop_pass(program)
    return fused
