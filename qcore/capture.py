"""From what a user has to a graph that can be annotated: export, guards, layouts, dynamic sizes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from attrs import frozen
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qcore.compat.torch import GRAD_MODE, GUARDS, TRACING
from qcore.errors import CaptureError
from qcore.graph import clone, is_observer
from qcore.quiet import quiet

__all__ = ["Sample", "capture", "exported_program", "in_mode", "inline_grad_modes", "remove_guards"]

_QUANTIZED: Final = ("quantized_decomposed.", "torchao.quantize", "torchao.dequantize")


@frozen
class Sample:
    """One set of inputs for a model: positional and keyword ones."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, value: Any) -> Sample:
        """Read what users pass: a tensor, a tuple or list of positional inputs, or a mapping.

        Tensors become contiguous in their own order of dimensions, since programs that were
        exported with channels_last inputs crash runtimes.
        """
        if isinstance(value, Sample):
            return value
        if isinstance(value, Mapping):
            return cls((), {str(key): _contiguous(item) for key, item in value.items()})
        items = value if isinstance(value, (tuple, list)) else (value,)
        return cls(tuple(map(_contiguous, items)), {})

    def flat(self) -> list[Any]:
        """Return the leaves of all inputs, positional ones first."""
        return list(torch.utils._pytree.tree_leaves((self.args, self.kwargs)))


def _contiguous(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.contiguous(), value)


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Put a model into train or eval mode, and every module back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def capture(
    model: torch.nn.Module | ExportedProgram,
    example: Sample,
    *,
    dynamic_shapes: Any = None,
    is_qat: bool = False,
) -> GraphModule:
    """Capture a model as a graph of ATen operators, without guards and ``torch.no_grad()`` bodies.

    The model is a module, an exported program, or the graph module of one; it is never changed, and
    the graph shares its parameters. ``is_qat`` exports in training mode, so that batch norm can be
    trained.
    """
    if isinstance(model, ExportedProgram):
        graph = model.module(check_guards=False)
    elif isinstance(model, GraphModule):
        graph = clone(model)
    elif isinstance(model, torch.nn.Module):
        with in_mode(model, training=is_qat):
            graph = exported_program(model, example, dynamic_shapes).module(check_guards=False)
    else:
        raise CaptureError(
            f"Cannot capture {type(model).__name__}: pass a torch.nn.Module, an ExportedProgram "
            "or the GraphModule of one. A saved program is loaded with torch.export.load(path)."
        )
    if any(_is_quantized(node) for node in graph.graph.nodes):
        raise CaptureError(
            "The model is quantized already: it has quantize operators or observers. Pass the "
            "float model; set_* rules select its parts."
        )
    _check_weights(graph)
    remove_guards(graph)
    inline_grad_modes(graph)
    return graph


def _check_weights(graph: GraphModule) -> None:
    for name, value in (*graph.named_parameters(), *graph.named_buffers()):
        if isinstance(value, FakeTensor) or value.is_meta or not value.is_floating_point():
            continue
        if bool(value.isnan().any()):
            raise CaptureError(
                f"{name!r} holds NaN, which no range covers. Load the weights of a training that "
                "went well."
            )


def _is_quantized(node: Node) -> bool:
    quantizes = node.op == "call_function" and str(node.target).startswith(_QUANTIZED)
    return quantizes or is_observer(node)


def exported_program(
    model: torch.nn.Module, example: Sample, dynamic_shapes: Any
) -> ExportedProgram:
    """Export a module in the mode it is in; CaptureError says what usually prevents it."""
    try:
        with TRACING, quiet():
            return torch.export.export(
                model, example.args, example.kwargs or None, dynamic_shapes=dynamic_shapes
            )
    except Exception as error:
        first, *others = (str(error).strip() or type(error).__name__).splitlines()
        # Of a size that does not vary after all, only this line says which and why.
        fixed = [line.strip() for line in others if "specialized it" in line]
        if fixed:
            fixed.append(
                "Take a first sample whose size there is 2 or more and may be another, or leave "
                "that dimension out of dynamic_shapes."
            )
        said = [first, *fixed]
        raise CaptureError(
            f"torch.export.export cannot capture {type(model).__name__}: {' '.join(said)}\n"
            "The cause is above. Usual ones: Python control flow on tensor values (use "
            "torch.cond), an input that the model does not take, a size that varies (pass "
            "dynamic_shapes), an output that is no tensor (a model from transformers needs "
            "use_cache=False). Or export it yourself and pass the ExportedProgram."
        ) from error


def remove_guards(model: GraphModule) -> None:
    """Remove the input guards that ``ExportedProgram.module()`` adds."""
    GUARDS.checked()
    guards = [n for n in model.graph.nodes if n.op == "call_module" and n.name == "_guards_fn"]
    for node in guards:
        model.graph.erase_node(node)
        model.delete_submodule(str(node.target))
    if guards:
        model.recompile()


def inline_grad_modes(model: GraphModule) -> None:
    """Inline the bodies of ``torch.no_grad()`` blocks, which PT2E would skip without a word."""
    inlined = GRAD_MODE.checked().wrap_with_set_grad_enabled
    blocks = [n for n in model.graph.nodes if n.target is inlined]
    for block in blocks:
        _inline(model, block)
    if blocks:
        model.graph.eliminate_dead_code()
        model.recompile()
        inline_grad_modes(model)


def _inline(model: GraphModule, node: Node) -> None:
    body_attribute, *operands = node.args[1:]
    assert isinstance(body_attribute, Node)
    body = operator.attrgetter(str(body_attribute.target))(model)
    placeholders = [n for n in body.graph.nodes if n.op == "placeholder"]
    values: dict[Node, Any] = dict(zip(placeholders, operands, strict=True))
    with model.graph.inserting_before(node):
        outputs = model.graph.graph_copy(body.graph, values)
    assert isinstance(outputs, (tuple, list))
    for inner, copied in values.items():
        if inner.op == "get_attr":
            name = f"{body_attribute.target}_{inner.target}".replace(".", "_")
            setattr(model, name, operator.attrgetter(str(inner.target))(body))
            copied.target = name
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(outputs[user.args[1]])
        model.graph.erase_node(user)
    model.graph.erase_node(node)
    model.graph.erase_node(body_attribute)
    model.delete_submodule(str(body_attribute.target))
