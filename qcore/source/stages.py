"""The order in which layers are quantized, and what the samples say about each one's inputs.

A model whose layers lie in a row of alike blocks, as language models and encoders do, goes block by
block: each sees the samples as the quantized blocks before it leave them. So at no time is more
held than the statistics of one block, and each sample's values between two blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves
from tqdm import tqdm

from qcore.capture import Sample
from qcore.compat.torchao import IntxUnpackedToInt8Tensor
from qcore.progress import bar_is_off
from qcore.source.modules import is_quantized
from qcore.source.planning import LayerPlan

__all__ = ["staged", "with_one_row"]

#: Layers that share one weight, and the second moment of their inputs.
Stage: TypeAlias = tuple[Sequence[LayerPlan], torch.Tensor | None]

#: Whether nobody asks for the inputs of a group of layers.
Known: TypeAlias = Callable[[Sequence[LayerPlan]], bool]


def staged(
    model: nn.Module,
    groups: Sequence[Sequence[LayerPlan]],
    samples: Sequence[Sample],
    is_known: Known,
    progress: bool | None = None,
) -> Iterator[Stage]:
    """Yield what to quantize next; it is quantized when the next is asked for.

    Args:
        model: The model.
        groups: The layers to quantize, those of one weight together.
        samples: Samples of its inputs; none where nobody asks for the inputs of the layers.
        is_known: Whether nobody asks for those of a group.
        progress: Show a bar; ``None`` means: on a terminal.

    Yields:
        Each group, with the sum of x x^T over its inputs x. That is ``None`` where nobody asks, for
        embeddings and what shares their weight, for layers that no sample reaches, and for those
        that keep the weight that they have.
    """
    observed = [group for group in groups if samples and _chosen_by_inputs(group)]
    blocks = _row(model, observed) if observed else []
    # Whether masks differ from block to block may depend on the length.
    longest = sorted(samples, key=_size)[-1:]
    looked = with_one_row(lambda: _inputs(model, blocks, longest)) if blocks else None
    for group in groups:
        if group not in observed:
            yield group, None
    if not observed:
        return
    chain = None
    if looked is not None:
        # What lies behind the blocks may be large, such as the head of a language model.
        asked = blocks[:1] if _are_alike(looked[1]) else blocks
        chain = _inputs(model, asked, samples, ends_early=True)
    if chain is not None:
        values, others = chain
        bar = tqdm(blocks, "quantize", unit="block", disable=bar_is_off(progress))
        for index, block in enumerate(bar):
            pairs = zip(values, others[index % len(others)], strict=True)
            calls = [Sample((value, *args), kwargs) for value, (args, kwargs) in pairs]
            inside = {id(module) for module in block.modules()}
            chosen = [g for g in observed if any(id(p.layer.module) in inside for p in g)]
            yield from _with_moments(block, chosen, calls, is_known)
            with _dequantized_once(block):
                values = [_first(_run(block, call)) for call in calls]
            observed = [group for group in observed if group not in chosen]
    yield from _with_moments(model, observed, samples, is_known)


def _chosen_by_inputs(group: Sequence[LayerPlan]) -> bool:
    layers = [plan.layer for plan in group if plan.scheme is not None]
    return all(layer.kind == "linear" and not is_quantized(layer.module) for layer in layers)


def _row(model: nn.Module, groups: Sequence[Sequence[LayerPlan]]) -> list[nn.Module]:
    """Return the blocks that most of the layers lie in; none for layers that lie in no such row."""
    layers = {id(plan.layer.module) for group in groups for plan in group}

    def holds(module: nn.Module) -> int:
        return sum(id(inner) in layers for inner in module.modules())

    rows = [
        m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1
    ]
    best = max(rows, key=holds, default=None)
    return [] if best is None or 2 * holds(best) < len(layers) else list(best)


#: The least outputs of a head, and how many times as many they are as its inputs: the layers in a
#: block have 4 times as many.
_HEAD: Final = (1024, 8)

Looked = TypeVar("Looked")


class _EndOfBlocks(BaseException):
    """Ends a run of the model behind its last block; no ``except Exception`` stops it."""


def _inputs(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    samples: Sequence[Sample],
    ends_early: bool = False,
) -> tuple[list[Any], list[list[tuple[Any, Any]]]] | None:
    """Return the first block's input for each sample, and each block's other arguments.

    ``None`` where the blocks are no chain, each fed with what the one before returns, or where an
    argument may remember the calls.
    """
    first: list[Any] = []
    others: list[list[tuple[Any, Any]]] = [[] for _ in blocks]
    last: Any = None
    is_chain = True

    def enter(index: int, _: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal is_chain
        if not args or not _is_plain((args, kwargs)):
            is_chain = False
        elif index == 0:
            first.append(args[0])
        elif args[0] is not last:
            is_chain = False
        others[index].append((args[1:], kwargs))

    def leave(index: int, _: nn.Module, __: Any, output: Any) -> None:
        nonlocal last
        last = _first(output)
        if ends_early and index == len(blocks) - 1:
            raise _EndOfBlocks

    with ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.enter_context(
                block.register_forward_pre_hook(partial(enter, index), with_kwargs=True)
            )
            hooks.enter_context(block.register_forward_hook(partial(leave, index)))
        for sample in samples:
            with suppress(_EndOfBlocks):
                _run(model, sample)
    once = all(len(seen) == len(samples) for seen in others)
    return (first, others) if is_chain and once else None


def _size(sample: Sample) -> int:
    leaves = tree_leaves((sample.args, sample.kwargs))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))


def _are_alike(others: Sequence[Any]) -> bool:
    """Say whether all blocks are called with the same other arguments."""
    (first, shape), *flat = map(tree_flatten, others)
    return all(
        other == shape
        and all(
            a is b or (type(a) is type(b) in (bool, int, float, str) and a == b)
            for a, b in zip(leaves, first, strict=True)
        )
        for leaves, other in flat
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (torch.Tensor, bool, int, float, str))


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


@torch.no_grad()  # type: ignore[untyped-decorator]
def _run(module: nn.Module, sample: Sample) -> Any:
    with _RowsAlone():
        return module(*sample.args, **sample.kwargs)


@contextmanager
def _dequantized_once(block: nn.Module) -> Iterator[None]:
    """Dequantize a block's weights once for several calls; torchao does it in each."""
    weights = [w for w in block.parameters() if isinstance(w, IntxUnpackedToInt8Tensor)]
    for weight in weights:
        weight.dequantize = partial(_itself, weight.dequantize())
    try:
        yield
    finally:
        for weight in weights:
            del weight.dequantize


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value


class _RowsAlone(TorchFunctionMode):  # type: ignore[misc]
    """Dequantizes the rows of an embedding that are looked up; torchao does the whole table."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        table = args[1] if func is nn.functional.embedding else None
        if not isinstance(table, IntxUnpackedToInt8Tensor) or table.block_size[0] != 1:
            return func(*args, **(kwargs or {}))
        used, places = torch.unique(args[0], return_inverse=True)
        pieces = [piece[used] for piece in (table.qdata, table.scale, table.zero_point)]
        rows = IntxUnpackedToInt8Tensor(
            *pieces,
            table.target_dtype,
            table.block_size,
            table.dtype,
            table.activation_quantization,
        )
        return func(places, rows.dequantize())


def with_one_row(look: Callable[[], Looked]) -> Looked:
    """Run a model for what it does with its values, whatever they are.

    Layers with far more outputs than inputs, such as the heads of language models, compute their
    last row alone, which stands for all others: 200 kB instead of 50 MB for 256 tokens and a
    vocabulary of 49,152. A model that writes into such a result is run as it is.

    Args:
        look: Runs the model; called again where the first run fails.

    Returns:
        What ``look`` returns.
    """
    try:
        with _LastRowAlone():
            return look()
    except RuntimeError:
        return look()


class _LastRowAlone(TorchFunctionMode):  # type: ignore[misc]
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and len(args) > 1 and _is_head(*args[:2]):
            x, *others = args
            return func(x[..., -1:, :], *others, **(kwargs or {})).expand(*x.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def _is_head(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.dim() < 2 or weight.dim() != 2:
        return False
    outputs, inputs = weight.shape
    return bool(outputs >= max(_HEAD[0], _HEAD[1] * inputs))


def _with_moments(
    module: nn.Module,
    groups: Sequence[Sequence[LayerPlan]],
    samples: Sequence[Sample],
    is_known: Known,
) -> Iterator[Stage]:
    asked = [plan for group in groups if not is_known(group) for plan in group]
    layers = {plan.layer.module for plan in asked if plan.scheme is not None}
    moment = _moments(module, layers, samples if layers else ())
    for group in groups:
        found = [moment(plan.layer.module) for plan in group if plan.scheme is not None]
        seen = [one for one in found if one is not None]
        yield group, sum(seen[1:], seen[0]) if seen else None


def _moments(
    module: nn.Module, layers: set[nn.Module], samples: Sequence[Sample]
) -> Callable[[nn.Module], torch.Tensor | None]:
    """Run the samples; layers that share their inputs share one sum."""
    sums: dict[tuple[nn.Module, ...], torch.Tensor] = {}
    for sample in samples:
        calls = _layer_inputs(module, layers, sample)
        alike: dict[tuple[int, ...], list[nn.Module]] = defaultdict(list)
        for layer, inputs in calls.items():
            alike[tuple(map(id, inputs))].append(layer)
        for together in alike.values():
            inputs = calls[together[0]]
            rows = torch.cat([x.detach().reshape(-1, x.shape[-1]) for x in inputs]).float()
            key = tuple(together)
            sums[key] = sums[key].addmm_(rows.T, rows) if key in sums else rows.T @ rows

    def of(layer: nn.Module) -> torch.Tensor | None:
        found = [total for key, total in sums.items() if layer in key]
        return sum(found[1:], found[0]) if found else None

    return of


def _layer_inputs(
    module: nn.Module, layers: set[nn.Module], sample: Sample
) -> dict[nn.Module, list[torch.Tensor]]:
    calls: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)

    def note(layer: nn.Module, args: Any) -> None:
        calls[layer].append(args[0])

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(note))
        _run(module, sample)
    return calls
