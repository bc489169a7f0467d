"""Float operators that XNNPACK takes under another form only, when a converted model is lowered.

Each operator that the delegate lacks ends one delegate and begins another. A norm is two averages
and elementwise arithmetic, attention two batches of products and a softmax: the delegate executes
all of these in float.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional
from torch.utils._pytree import tree_map

from qcore.annotation.forms import Form, Written, always
from qcore.graph import argument_of, each_dimension, tensor_value
from qcore_executorch.rewriting import Tensors, rewritten
from qcore_xnnpack.constants import constant_nodes, fold
from qcore_xnnpack.forms import XNNPACK_FORMS, static_shape

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["in_delegable_forms"]

aten = torch.ops.aten

# So small that the exponential of the difference to anything else is 0, and finite: XNNPACK makes
# NaN of a row of infinities.
_NEVER: Final = -1e30
# More copies of a tensor are left to a kernel that repeats.
_MOST_COPIES: Final = 16


def in_delegable_forms(program: ExportedProgram) -> ExportedProgram:
    """Compute what depends on no input now, and write float operators as the delegate takes them.

    Args:
        program: The exported converted model.

    Returns:
        The same program where nothing had to change, else a new one.
    """
    writer = _Writer(constant_nodes(program))
    return rewritten(program, writer.wanted, writer.write)


@attrs.define
class _Writer:
    """Rewrites the nodes of one program; what several of them need is inserted once."""

    #: Names of the nodes whose values are known now.
    constants: frozenset[str]
    _buffers: dict[tuple[Any, ...], Node] = attrs.field(factory=dict, init=False)
    _masks: dict[Node, tuple[Any, Any]] = attrs.field(factory=dict, init=False)

    def wanted(self, node: Node) -> bool:
        """Say whether a node is rewritten."""
        if node.op != "call_function":
            return False
        return node.name in self.constants or self._written(node) is not None

    def write(self, model: GraphModule, node: Node, tensors: Tensors) -> None:
        """Put a constant or other operators in the place of a node."""
        if node.name in self.constants:
            fold(model, node, tensors)
            return
        written = self._written(node)
        assert written is not None
        given = node.args if written.arguments is None else written.arguments
        if node.target is aten.scaled_dot_product_attention.default:
            given = (*given[:-1], *self._mask(model, tensors, given[-1]))
        kwargs = node.kwargs if written.arguments is None else {}
        args = tree_map(lambda value: self._as_node(model, value), given)
        with model.graph.inserting_before(node):
            new = model.graph.call_function(written.function, args, kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        # torch keeps what may be random, such as attention, though nothing reads it.
        model.graph.erase_node(node)

    @staticmethod
    def _written(node: Node) -> Written | None:
        form = _FORMS.get(node.target)
        value = tensor_value(node)
        source = tensor_value(node.all_input_nodes[0]) if form and node.all_input_nodes else None
        if form is None or source is None or source.dtype is not torch.float32:
            return None
        if value is not None and value.dtype is not torch.float32:
            return None
        return form(node.graph.owning_module, node)

    def _as_node(self, model: GraphModule, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        key = (tuple(value.shape), value.numpy().tobytes())
        if key not in self._buffers:
            name = f"_form_{len(self._buffers)}"
            model.register_buffer(name, value)
            nodes = iter(model.graph.nodes)
            with model.graph.inserting_before(next(n for n in nodes if n.op != "placeholder")):
                self._buffers[key] = model.graph.get_attr(name)
        return self._buffers[key]

    def _mask(self, model: GraphModule, tensors: Tensors, mask: Any) -> tuple[Any, Any]:
        """Return what is added to the scores of attention, and the factor of its weights."""
        if isinstance(mask, Node) and mask.op == "get_attr":
            mask = getattr(model, str(mask.target))
        elif isinstance(mask, Node) and mask.op == "placeholder" and mask.name in self.constants:
            mask = tensors[mask.name]
        if mask is None or isinstance(mask, torch.Tensor):
            return _constant_mask(mask)
        if mask not in self._masks:
            with model.graph.inserting_after(mask):
                added = model.graph.call_function(_added, (mask,))
                value = tensor_value(mask)
                is_choice = value is not None and value.dtype is torch.bool
                factor = model.graph.call_function(_factor, (mask,)) if is_choice else None
            for made in filter(None, (added, factor)):
                made.meta = {key: value for key, value in mask.meta.items() if key != "val"}
            self._masks[mask] = (added, factor)
        return self._masks[mask]


def _added(mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype is torch.bool:
        return (mask.to(torch.float32) - 1) * -_NEVER
    return mask.clamp(min=_NEVER)


def _factor(mask: torch.Tensor) -> torch.Tensor:
    """Return 0 for rows of attention that may look at nothing, whose result is 0."""
    return mask.any(-1, keepdim=True).to(torch.float32)


def _constant_mask(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if mask is None:
        return None, None
    seen = mask if mask.dtype is torch.bool else mask > -math.inf
    added, factor = _added(mask.detach()), _factor(seen)
    return added if bool(added.any()) else None, None if bool(factor.all()) else factor


def _averaging(size: int) -> torch.Tensor:
    return torch.full((1, size), 1 / size)


def _layer_norm(model: GraphModule, node: Node) -> Written | None:
    x, sizes = tensor_value(node.args[0]), node.args[1]
    assert x is not None
    if len(each_dimension(sizes)) != 1 or not isinstance(x.shape[-1], int):
        return None
    epsilon = torch.tensor([float(argument_of(node, "eps", 1e-5))])
    weight, bias = argument_of(node, "weight", None), argument_of(node, "bias", None)

    def normalized(
        x: torch.Tensor, average: torch.Tensor, epsilon: torch.Tensor, weight: Any, bias: Any
    ) -> torch.Tensor:
        # An average is a layer with one output: XNNPACK's own reduces images only.
        centred = x - functional.linear(x, average)
        variance = functional.linear(centred * centred, average, epsilon)
        result = centred * torch.rsqrt(variance)
        result = result if weight is None else result * weight
        return result if bias is None else result + bias

    return Written(normalized, (node.args[0], _averaging(x.shape[-1]), epsilon, weight, bias))


def _mean(model: GraphModule, node: Node) -> Written | None:
    x, shape = tensor_value(node.args[0]), static_shape(node.meta["val"].shape)
    dims: Any = argument_of(node, "dim", None)
    assert x is not None
    if dims is None or [dim % x.dim() for dim in each_dimension(dims)] != [x.dim() - 1]:
        return None
    if not isinstance(x.shape[-1], int) or shape is None or "dtype" in node.kwargs:
        return None
    is_sum = node.target is aten.sum.dim_IntList
    weight = torch.ones(1, x.shape[-1]) if is_sum else _averaging(x.shape[-1])
    return Written(
        lambda x, weight: functional.linear(x, weight).reshape(shape), (node.args[0], weight)
    )


def _softmax(model: GraphModule, node: Node) -> Written | None:
    """Write it over the last of two dimensions.

    XNNPACK has no other one, and in images beside convolutions, whose channels are last there,
    ExecuTorch's delegate normalizes over the channels, whatever dimension it is given.
    """
    x = tensor_value(node.args[0])
    assert x is not None
    dim = int(argument_of(node, "dim", -1)) % max(x.dim(), 1)
    moved = x.transpose(dim, -1) if x.dim() else x
    shape = static_shape(moved.shape)
    is_last = dim == x.dim() - 1
    if shape is None or argument_of(node, "dtype", None) is not None or (is_last and x.dim() < 4):
        return None

    def softmax(x: torch.Tensor) -> torch.Tensor:
        x = x if is_last else x.transpose(dim, -1)
        x = x.reshape(-1, shape[-1]).softmax(-1).reshape(shape)
        return x if is_last else x.transpose(dim, -1)

    return Written(softmax, (node.args[0],)) if shape[-1] != -1 else None


def _attention(model: GraphModule, node: Node) -> Written | None:
    query, key, value = (tensor_value(n) for n in node.args[:3])
    assert query is not None
    assert key is not None
    assert value is not None
    sizes = [*query.shape, *key.shape, *value.shape]
    if query.dim() < 2 or not all(isinstance(size, int) for size in sizes):
        return None
    batch, heads = query.shape[:-2], query.shape[-3:-2]
    shared = key.shape[-3:-2]
    if key.shape[:-2] != value.shape[:-2] or batch[:-1] != key.shape[:-3]:
        return None
    if bool(argument_of(node, "dropout_p", 0.0)) or (heads and heads[0] % shared[0]):
        return None
    if heads != shared and not argument_of(node, "enable_gqa", False):
        return None
    rows, columns = query.shape[-2], key.shape[-2]
    scale = argument_of(node, "scale", None) or query.shape[-1] ** -0.5
    mask = argument_of(node, "attn_mask", None)
    if argument_of(node, "is_causal", False):
        mask = torch.ones(rows, columns, dtype=torch.bool).tril()
    pairs = math.prod(key.shape[:-2])

    def attended(q: Any, k: Any, v: Any, scale: Any, added: Any, factor: Any) -> torch.Tensor:
        # Heads that share a key are rows of one product.
        grouped = (q * scale).reshape(pairs, -1, q.shape[-1])
        k, v = (x.reshape(pairs, columns, x.shape[-1]) for x in (k, v))
        scores = torch.bmm(grouped, k.transpose(1, 2))
        if added is not None:
            scores = _over_rows(torch.add, scores, added, (*batch, rows, columns))
        weights = scores.softmax(-1)
        if factor is not None:
            weights = _over_rows(torch.mul, weights, factor, (*batch, rows, columns))
        return torch.bmm(weights, v).reshape(*batch, rows, v.shape[-1])

    return Written(attended, (*node.args[:3], torch.tensor([float(scale)]), mask))


def _over_rows(apply: Any, scores: torch.Tensor, mask: torch.Tensor, shape: Any) -> torch.Tensor:
    """Apply a mask that need not differ from batch to batch, in three dimensions if it does not."""
    if math.prod(mask.shape[:-2]) != 1:
        return apply(scores.reshape(shape), mask).reshape(scores.shape)
    mask = mask.reshape(1, *mask.shape[-2:]) if mask.dim() > 1 else mask
    if mask.dim() == 1 or mask.shape[1] == 1:
        return apply(scores, mask)
    return apply(scores.reshape(-1, *shape[-2:]), mask).reshape(scores.shape)


def _matmul(model: GraphModule, node: Node) -> Written | None:
    a, b = (tensor_value(n) for n in node.args[:2])
    assert a is not None
    assert b is not None
    if min(a.dim(), b.dim()) < 2 or not all(isinstance(n, int) for n in (*a.shape, *b.shape)):
        return None
    if isinstance(node.args[1], Node) and node.args[1].op in ("get_attr", "placeholder"):
        return None
    shape = node.meta["val"].shape
    batch = math.prod(b.shape[:-2])
    if batch != 1 and a.shape[:-2] != b.shape[:-2]:
        return None

    def multiplied(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = torch.bmm(a.reshape(batch, -1, a.shape[-1]), b.reshape(batch, *b.shape[-2:]))
        return product.reshape(shape)

    return Written(multiplied, node.args[:2])


def _expand(model: GraphModule, node: Node) -> Written | None:
    """Write a repetition along one dimension as a concatenation."""
    x, result = tensor_value(node.args[0]), node.meta["val"]
    assert x is not None
    if x.shape == result.shape:
        return Written(lambda x: x, (node.args[0],))
    if not all(isinstance(size, int) for size in (*x.shape, *result.shape)):
        return None
    shape = [1] * (result.dim() - x.dim()) + list(x.shape)
    wider = [axis for axis, size in enumerate(result.shape) if shape[axis] != size]
    if len(wider) != 1 or result.shape[wider[0]] > _MOST_COPIES:
        return None

    def repeated(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.reshape(shape)] * result.shape[wider[0]], wider[0])

    return Written(repeated, (node.args[0],))


def _selected(model: GraphModule, node: Node) -> Written | None:
    source, shape = tensor_value(node.args[0]), static_shape(node.meta["val"].shape)
    if source is None or shape is None:
        return None
    axis, index = node.args[1:3]
    size = source.shape[axis]
    if not isinstance(index, int) or not isinstance(size, int):
        return None
    if size == 1:
        return Written(lambda x, *_: aten.reshape.default(x, shape))
    first = index % size
    return Written(lambda x, *_: aten.slice.Tensor(x, axis, first, first + 1).reshape(shape))


def _inferred(model: GraphModule, node: Node) -> Written | None:
    """Leave the one size that varies to be inferred, which is all that XNNPACK's reshape takes."""
    shape = static_shape(node.meta["val"].shape)
    if shape is None or -1 not in shape or shape == [*each_dimension(node.args[1])]:
        return None
    target: Any = node.target
    return Written(target, (node.args[0], shape))


def _power(model: GraphModule, node: Node) -> Written | None:
    exponent: Any = node.args[1]
    function = _POWERS.get(exponent)
    return None if function is None else Written(lambda x, _: function(x))


def _prelu(model: GraphModule, node: Node) -> Written | None:
    """Write it by ReLUs but for images, which are all that the delegate's operator takes."""
    x, weight = tensor_value(node.args[0]), tensor_value(node.args[1])
    if x is None or weight is None or x.dim() in (1, 4):
        return None
    axis = -1 if weight.numel() == 1 else 1

    def leaky(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        below = torch.relu(-x).transpose(axis, -1) * weight
        return torch.relu(x) - below.transpose(axis, -1)

    return Written(leaky)


_POWERS: Final[dict[float, Any]] = {
    0.5: torch.sqrt,
    -0.5: torch.rsqrt,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
}

_RESHAPES: Final = (
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.max_pool1d.default,
)

# Operator -> its form. Those of the quantized flow serve what stayed in float, too.
_FORMS: Final[dict[Any, Form]] = {
    **{operator: XNNPACK_FORMS[operator] for operator in _RESHAPES},
    aten.layer_norm.default: _layer_norm,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _mean,
    aten.reshape.default: _inferred,
    aten.view.default: _inferred,
    aten.softmax.int: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _matmul,
    aten.select.int: _selected,
    aten.expand.default: _expand,
    aten.pow.Tensor_Scalar: _power,
    aten.prelu.default: _prelu,
    aten.square.default: always(lambda x: x * x),
}
