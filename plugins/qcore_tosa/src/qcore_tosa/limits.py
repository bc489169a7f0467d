"""What ExecuTorch's lowering for Arm computes wrongly, and what no program of it can do."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from qcore.errors import CaptureError
from qcore.graph import arguments, module_path, operator_name, positions_are_used, tensor_value

__all__ = ["dynamic_size", "is_whole", "miscomputed", "refuse_written_buffers"]


def refuse_written_buffers(model: GraphModule) -> None:
    """Refuse models that keep a state: a program of constants would forget what was written.

    Args:
        model: The captured model.

    Raises:
        CaptureError: An operator writes into a buffer, and something reads it.
    """
    for node in model.graph.nodes:
        source = node.args[0] if _writes(node) and node.args else None
        if not isinstance(source, Node) or source.op != "get_attr":
            continue
        # Batch norms count their batches in training, and nothing reads that.
        if not node.users and len(source.users) == 1:
            continue
        where = module_path(node)
        raise CaptureError(
            f"{node.name} ({node.target}){f' in {where!r}' if where else ''} writes into the "
            f"buffer {source.target!r}, and a program for this backend keeps no state. Take the "
            "value as an input of the model, and return the new one."
        )


def dynamic_size(graph: Graph, backend: str) -> str:
    """Say which size of an input varies, which no compiler here takes.

    Args:
        graph: The graph of a captured model or of an exported program.
        backend: Name of the backend, for the message.

    Returns:
        The message; empty where all sizes are fixed.
    """
    for node in graph.find_nodes(op="placeholder"):
        for index, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if not isinstance(size, int):
                return (
                    f"{backend} compiles for fixed shapes: dimension {index} of {node.name!r} is "
                    "dynamic. Capture the model without dynamic_shapes, once for each size."
                )
    return ""


def miscomputed(node: Node) -> str | None:
    """Say why ExecuTorch's lowering for Arm would compute an operator wrongly.

    Args:
        node: An operator, of ATen or of ExecuTorch's edge dialect.

    Returns:
        The reason, or ``None`` where the result is right.
    """
    name = operator_name(node)
    if name in ("aten.max.dim", "aten.min.dim") and positions_are_used(node):
        return "its positions are used, and TOSA's reductions give values only"
    if name == "aten.upsample_nearest2d.vec" and not is_whole(node):
        return "TOSA rounds positions otherwise than torch where the factor is no whole number"
    return None


def is_whole(node: Node) -> bool:
    """Say whether a resizing enlarges by whole numbers."""
    before, after = tensor_value(node.args[0]), tensor_value(node)
    assert before is not None
    assert after is not None
    sizes = zip(before.shape[2:], after.shape[2:], strict=True)
    return all(large % small == 0 for small, large in sizes)


def _writes(node: Node) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in arguments(node))
